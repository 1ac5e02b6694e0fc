"""What ended servers left behind goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tessera.shared import settings
from tessera.shared import sweep as module
from tessera.shared.settings import default_board
from tessera.shared.sweep import sweep_boards


def test_boards_of_ended_servers_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module, settings):
        monkeypatch.setattr(place, "SHARED", tmp_path)
    alive = default_board()
    namespace = os.stat("/proc/self/ns/pid").st_ino
    dead = tmp_path / f"tessera-board-{namespace}-{os.getppid()}-12"
    foreign = tmp_path / f"tessera-board-{namespace + 1}-1-12"
    beside = [Path(f"{dead}{end}") for end in (".controls", ".costs", ".costs.partial")]
    strays = [tmp_path / f"tessera-board-{namespace}-{end}" for end in ("a", "1", "1-b", "1-2-3")]
    for path in (alive, dead, *beside, foreign, *strays):
        path.touch()
    sweep_boards()
    assert sorted(tmp_path.iterdir()) == sorted([alive, foreign, *strays])

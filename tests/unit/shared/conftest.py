"""A board whose time passes when the test says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.shared import at_work, ends
from tessera.shared import board as module
from tessera.shared.board import Board
from tests.samples.boards import SLOTS, Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for each in (module, at_work, ends):
        monkeypatch.setattr(each, "time", clock)
    return clock


@pytest.fixture
def board(tmp_path: Path, clock: Clock) -> Board:
    board = Board(tmp_path / "board")
    board.tell_slots(SLOTS)
    return board

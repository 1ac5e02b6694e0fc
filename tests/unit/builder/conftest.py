"""Checkpoints to open and to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.checkpoint import topology
from tests.samples.checkpoints import Saved


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """Checkpoints by name of `topology`. Unlike `small`, no bundle is made of them."""
    made: dict[str, Saved] = {}

    def get(name: str) -> Saved:
        if name not in made:
            pipe, folder = topology(name), tmp_path_factory.mktemp(name) / "checkpoint"
            pipe.save_pretrained(folder)
            made[name] = Saved(pipe, folder)
        return made[name]

    return get


@pytest.fixture
def copy(saved: Callable[[str], Saved], tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(saved("sd15").folder, folder)
    return folder

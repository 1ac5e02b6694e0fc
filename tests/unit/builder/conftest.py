"""A checkpoint to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.samples.graphs import Make


@pytest.fixture
def copy(small: Make, tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(small("sd15").checkpoint, folder)
    return folder

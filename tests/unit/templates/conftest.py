"""A store in a folder of its own; a recorder on a small UNet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.templates.store import TemplateStore
from tests.samples.edits import world

__all__ = ["store", "world"]


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    return TemplateStore(tmp_path, budget=10**9)

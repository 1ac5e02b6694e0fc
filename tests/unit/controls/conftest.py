"""Residencies on one table, and processes that use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from tessera.controls.residency import Residency
from tests.fakes.residency import BUDGET, FORK, SIZES, FakeModels, Open, Start
from tests.samples.waiting import PATIENCE_S


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """A residency of 8 bytes on a table and models that every other one of this test shares."""

    def make(
        *, pinned: tuple[str, ...] = (), seconds: float = 0.0, patience: float = 10.0
    ) -> tuple[Residency, FakeModels]:
        models = FakeModels(tmp_path / "models", seconds)
        residency = Residency(
            tmp_path / "table",
            SIZES,
            budget=BUDGET,
            pinned=pinned,
            models=models,
            patience=patience,
        )
        return residency, models

    return make


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes that end with the test, however it ends."""
    children: list[ForkProcess] = []

    def run(target: Callable[..., None], *args: Any) -> ForkProcess:
        children.append(FORK.Process(target=target, args=args, daemon=True))
        children[-1].start()
        return children[-1]

    yield run
    for child in children:
        child.kill()
        child.join(PATIENCE_S)

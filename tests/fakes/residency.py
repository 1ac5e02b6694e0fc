"""ControlNets that count how they are loaded, and what tests ask of a residency."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

from tessera.controls.residency import Residency
from tessera.errors import Cancelled, Unavailable

FORK = multiprocessing.get_context("fork")
SIZES = {"a": 3, "b": 3, "c": 3, "d": 5}
BUDGET = 8


class FakeModels:
    """Loaded models are files of a folder; loading one twice or unloading a missing one is noted as
    an error there. While the folder has a file "slow", no load ends.
    """

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self._folder = folder
        self._seconds = seconds
        folder.mkdir(exist_ok=True)
        self.moves: list[str] = []

    def load(self, name: str) -> None:
        if name == "d" and (self._folder / "no-d").exists():
            raise Unavailable("the controlnet_d model could not be loaded")
        time.sleep(self._seconds)
        until(lambda: not (self._folder / "slow").exists())
        self.moves.append(f"+{name}")
        (self._folder / name).touch(exist_ok=False)
        together = sum(SIZES[p.name] for p in self._folder.iterdir() if p.name in SIZES)
        assert together <= BUDGET, "more was loaded than there is room for"

    def unload(self, name: str) -> None:
        self.moves.append(f"-{name}")
        (self._folder / name).unlink()

    def is_ready(self, name: str) -> bool:
        return (self._folder / name).exists()


Open = Callable[..., tuple[Residency, FakeModels]]
Start = Callable[..., ForkProcess]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.005)


def is_moving(residency: Residency, name: str) -> bool:
    with residency._table() as table:
        return name in table.residents and bool(table.residents[name].mover)


def holders(residency: Residency, name: str) -> int:
    with residency._table() as table:
        return len(table.residents[name].holders) if name in table.residents else 0


def take(opened: Open, names: list[str]) -> None:
    opened()[0].take(names)


def give_up_after(tries: int) -> Callable[[], None]:
    left = [tries]

    def give_up() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cancelled("enough")

    return give_up

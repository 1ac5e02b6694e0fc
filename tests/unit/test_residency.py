"""Which ControlNets are loaded: real processes on one shared table, with models that count."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.controls.residency import Residency
from tessera.errors import Cancelled, InvalidInput, Unavailable

SIZES = {"a": 3, "b": 3, "c": 3, "d": 5}
BUDGET = 8


class FakeModels:
    """Loaded models are files of a folder; loading one twice or unloading a missing one is noted as
    an error there.
    """

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self._folder, self._seconds = folder, seconds
        folder.mkdir(exist_ok=True)
        self.moves: list[str] = []

    def load(self, name: str) -> None:
        if name == "d" and (self._folder / "no-d").exists():
            raise Unavailable("the controlnet_d model could not be loaded")
        time.sleep(self._seconds)
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


def test_the_longest_unused_leaves(opened: Open) -> None:
    residency, models = opened()
    for name in ("a", "b", "a", "c", "a"):
        residency.take([name])
        residency.give_back([name])
    assert models.moves == ["+a", "+b", "-b", "+c"]


def test_several_at_once_and_the_same_twice(opened: Open) -> None:
    residency, models = opened()
    residency.take(["a", "b"])
    residency.take(["b", "a"])
    residency.give_back(["a", "b"])
    with pytest.raises(Cancelled):
        residency.take(["c"], _give_up_after(3))  # they are still held, once
    residency.give_back(["a", "b"])
    residency.take(["c"])
    assert models.moves == ["+a", "+b", "-a", "+c"]


def test_pinned_ones_stay_and_have_their_room_before_they_are_taken(opened: Open) -> None:
    residency, models = opened(pinned=("a",))
    (models._folder / "a").touch()  # the server has loaded it
    for name in ("b", "c"):
        residency.take([name])
        residency.give_back([name])
    residency.take(["c"])
    assert residency.take(["a"], _give_up_after(0)) < 1000  # though there is no room but its own
    assert models.moves == ["+b", "-b", "+c"]


def test_what_does_not_fit_is_refused(opened: Open) -> None:
    residency, models = opened(pinned=("d",))
    with pytest.raises(InvalidInput, match="CONTROLS is 'a, b'; accepted: ControlNets of at most"):
        residency.take(["a", "b"])
    residency.take(["d"])
    assert models.moves == ["+d"]
    residency, _ = opened(pinned=("a", "b", "c"))
    with pytest.raises(InvalidInput, match="beside the pinned a, b, c"):
        residency.take(["a"])


def test_a_failed_load_frees_the_room_and_what_was_held(opened: Open, tmp_path: Path) -> None:
    residency, models = opened()
    (tmp_path / "models" / "no-d").touch()
    residency.take(["a"])
    residency.give_back(["a"])
    with pytest.raises(Unavailable, match="could not be loaded"):
        residency.take(["a", "d"])
    residency.take(["b", "c"])
    assert models.moves == ["+a", "-a", "+b", "+c"]


def test_one_that_somebody_else_has_unloaded_is_loaded_again(opened: Open) -> None:
    residency, models = opened()
    residency.take(["a"])
    residency.give_back(["a"])
    models.unload("a")
    residency.take(["a"])
    assert models.moves == ["+a", "-a", "+a"]


def test_who_holds_one_that_is_loaded_again_goes_on_holding_it(opened: Open) -> None:
    first, models = opened()
    first.take(["a"])
    models.unload("a")  # its process has died
    child = multiprocessing.get_context("fork").Process(target=_take_and_give_back, args=(opened,))
    child.start()
    child.join()
    assert child.exitcode == 0
    with pytest.raises(Cancelled):
        first.take(["b", "c"], _give_up_after(3))  # "a" is still held, so there is no room


def _take_and_give_back(opened: Open) -> None:
    residency, models = opened()
    residency.take(["a"])
    assert models.moves == ["+a"]
    residency.give_back(["a"])


def test_one_that_waits_for_room_is_not_passed_over_for_ever(opened: Open) -> None:
    """Two who take turns at overlapping times never leave "a" and "b" idle, unless they have to."""
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    others = [context.Process(target=_overlap, args=(opened, stop, i)) for i in range(2)]
    for other in others:
        other.start()
    time.sleep(0.5)
    residency, _ = opened(patience=0.3)
    waited = residency.take(["d"])
    stop.set()
    residency.give_back(["d"])
    for other in others:
        other.join(20)
    assert [other.exitcode for other in others] == [0, 0]
    assert 300 < waited < 5000


def _overlap(opened: Open, stop: Any, number: int) -> None:
    residency, _ = opened(patience=0.3)
    time.sleep(0.05 * number)
    while not stop.is_set():
        residency.take(["a", "b"])
        time.sleep(0.1)
        residency.give_back(["a", "b"])


def test_what_a_dead_process_held_or_was_loading_is_free(opened: Open, tmp_path: Path) -> None:
    residency, models = opened()
    child = multiprocessing.get_context("fork").Process(target=_take_and_die, args=(opened,))
    child.start()
    child.join()
    (holder,) = json.loads((tmp_path / "table").read_text())["residents"]["a"]["holders"]
    assert holder.startswith(f"{child.pid}:")
    residency.take(["d"])
    residency.take(["c"])
    assert models.moves == ["+d", "-a", "+c"]


def test_a_dead_process_that_its_parent_has_not_collected_holds_nothing(opened: Open) -> None:
    """Triton collects a killed process when its model is unloaded, which may wait for requests."""
    child = os.fork()
    if not child:
        _take_and_die(opened)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    residency, models = opened()
    assert residency.take(["b", "c"]) < 1000
    assert models.moves == ["-a", "+b", "+c"]
    os.waitpid(child, 0)


def _take_and_die(opened: Open) -> None:
    opened()[0].take(["a"])
    os._exit(0)


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_a_dead_process_was_loading_takes_room(
    opened: Open, tmp_path: Path, goes_on: bool
) -> None:
    """The server goes on with the load, or has never begun it."""
    child = multiprocessing.get_context("fork").Process(target=_load_slowly, args=(opened,))
    child.start()
    time.sleep(0.3)
    child.kill()
    child.join()
    residency, models = opened()
    if goes_on:
        (tmp_path / "models" / "a").touch()
        residency.take(["b", "c"])
        assert models.moves == ["-a", "+b", "+c"]
    else:
        residency.take(["a"])
        assert models.moves == ["+a"]


def _load_slowly(opened: Open) -> None:
    opened(seconds=60.0)[0].take(["a"])


def test_who_has_waited_for_long_and_has_its_room_holds_nobody_up(opened: Open) -> None:
    residency, models = opened(patience=0.1)
    residency.take(["d"])
    late = multiprocessing.get_context("fork").Process(target=_wait_for_room, args=(opened,))
    late.start()
    time.sleep(0.3)
    with residency._table() as table:
        assert not residency._on_turn(table), "it has not waited for long"
    residency.give_back(["d"])
    time.sleep(0.3)
    assert not models.is_ready("a"), "it is not loading"
    with residency._table() as table:
        assert residency._on_turn(table)
    late.join()
    assert late.exitcode == 0


def _wait_for_room(opened: Open) -> None:
    opened(seconds=1.0, patience=0.1)[0].take(["a", "b"])


def test_while_one_is_loaded_only_those_who_need_it_wait(opened: Open) -> None:
    quick, _ = opened()
    quick.take(["a"])
    quick.give_back(["a"])
    loading = threading.Thread(target=lambda: opened(seconds=1.0)[0].take(["b"]))
    loading.start()
    time.sleep(0.2)
    began = time.monotonic()
    quick.take(["a"])
    assert time.monotonic() - began < 0.5
    waited = quick.take(["b"])
    assert 200 < waited < 5000
    loading.join()


@pytest.mark.parametrize("seed", range(3))
def test_many_processes_with_random_sets_all_get_theirs(
    opened: Open, tmp_path: Path, seed: int
) -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_work, args=(opened, seed * 10 + i)) for i in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    loaded = {p.name for p in (tmp_path / "models").iterdir()}
    table = json.loads((tmp_path / "table").read_text())
    assert loaded == set(table["residents"])
    assert sum(SIZES[name] for name in loaded) <= 8
    assert not any(r["holders"] or r["mover"] for r in table["residents"].values())
    assert table["waiting"] == {}


def _work(opened: Open, seed: int) -> None:
    rng = random.Random(seed)
    residency, models = opened(seconds=0.002)
    for _ in range(25):
        names = rng.choice([["a"], ["b"], ["c"], ["d"], ["a", "b"], ["b", "c"], ["a", "d"]])
        residency.take(names)
        assert all(models.is_ready(name) for name in names)
        time.sleep(rng.random() / 200)
        assert all(models.is_ready(name) for name in names)
        residency.give_back(names)


def _give_up_after(tries: int) -> Callable[[], None]:
    left = [tries]

    def give_up() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cancelled("enough")

    return give_up

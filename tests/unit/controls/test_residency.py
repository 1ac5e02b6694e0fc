"""Which ControlNets are loaded: real processes on one shared table, with models that count."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from tessera.controls.residency import Residency
from tessera.errors import Cancelled, InvalidInput, Unavailable
from tessera.shared.processes import identity

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
        _until(lambda: not (self._folder / "slow").exists())
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
        child.join(60)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it has not come about within a minute"
        time.sleep(0.005)


def _is_moving(residency: Residency, name: str) -> bool:
    with residency._table() as table:
        return name in table.residents and bool(table.residents[name].mover)


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
    residency.take(["a"], _give_up_after(0))  # at once, though there is no room but its own
    assert models.moves == ["+b", "-b", "+c"]


def test_what_does_not_fit_is_refused(opened: Open) -> None:
    residency, models = opened(pinned=("d",))
    with pytest.raises(InvalidInput, match="CONTROLS is 'a, b'; accepted: ControlNets of at most"):
        residency.take(["a", "b"])
    residency.take(["d"])
    assert models.moves == ["+d"]
    residency, _ = opened(pinned=("a", "b", "c"))
    with pytest.raises(InvalidInput, match="in addition to the pinned a, b, c"):
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


def test_who_holds_one_that_is_loaded_again_goes_on_holding_it(opened: Open, start: Start) -> None:
    first, models = opened()
    first.take(["a"])
    models.unload("a")  # its process has died
    child = start(_take_and_give_back, opened)
    child.join(60)
    assert child.exitcode == 0
    with pytest.raises(Cancelled):
        first.take(["b", "c"], _give_up_after(3))  # "a" is still held, so there is no room


def _take_and_give_back(opened: Open) -> None:
    residency, models = opened()
    residency.take(["a"])
    assert models.moves == ["+a"]
    residency.give_back(["a"])


def test_one_that_waits_for_room_is_not_passed_over_for_ever(opened: Open, start: Start) -> None:
    """Two who take turns at overlapping times never leave "a" and "b" idle, unless they have to."""
    stop, taken = FORK.Event(), [FORK.Event(), FORK.Event()]
    workers = [start(_overlap, opened, stop, *events) for events in (taken, taken[::-1])]
    residency, _ = opened(patience=0.3)
    _until(lambda: _holders(residency, "a") == 2)
    assert residency.take(["d"], _give_up_after(3000)) > 300
    stop.set()
    residency.give_back(["d"])
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]


def _holders(residency: Residency, name: str) -> int:
    with residency._table() as table:
        return len(table.residents[name].holders) if name in table.residents else 0


def _overlap(opened: Open, stop: Any, own: Any, others: Any) -> None:
    """Keep "a" and "b" until the other has taken them, too, or has to wait."""
    residency, _ = opened(patience=0.3)

    def other_waits() -> bool:
        with residency._table() as table:
            return bool(set(table.waiting) - {identity(os.getppid())})

    while not stop.is_set():
        residency.take(["a", "b"])
        others.clear()
        own.set()
        _until(lambda: others.is_set() or other_waits() or stop.is_set())
        residency.give_back(["a", "b"])


def test_what_a_dead_process_held_or_was_loading_is_free(opened: Open, start: Start) -> None:
    residency, models = opened()
    child = start(_take_and_die, opened)
    child.join(60)
    assert child.exitcode == 0
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
    residency.take(["b", "c"], _give_up_after(0))
    assert models.moves == ["-a", "+b", "+c"]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _take_and_die(opened: Open) -> None:
    """Exit status 0 if it died holding "a"."""
    try:
        residency, _ = opened()
        residency.take(["a"])
        os._exit(0 if _holders(residency, "a") == 1 else 1)
    finally:
        os._exit(2)


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_a_dead_process_was_loading_takes_room(
    opened: Open, start: Start, tmp_path: Path, goes_on: bool
) -> None:
    """The server goes on with the load, or has never begun it."""
    residency, models = opened()
    slow = tmp_path / "models" / "slow"
    slow.touch()
    child = start(_take, opened, ["a"])
    _until(lambda: _is_moving(residency, "a"))
    child.kill()
    child.join(60)
    slow.unlink()
    if goes_on:
        (tmp_path / "models" / "a").touch()
        residency.take(["b", "c"])
        assert models.moves == ["-a", "+b", "+c"]
    else:
        residency.take(["a"])
        assert models.moves == ["+a"]


def test_who_has_waited_for_long_and_has_its_room_holds_nobody_up(
    opened: Open, start: Start, tmp_path: Path
) -> None:
    residency, models = opened(patience=0.1)
    residency.take(["d"])
    slow = tmp_path / "models" / "slow"
    slow.touch()
    late = start(_take, opened, ["a", "b"])
    _until(lambda: not _on_turn(residency))
    residency.give_back(["d"])
    _until(lambda: _is_moving(residency, "a"))
    assert not models.is_ready("a"), "it is not loading"
    assert _on_turn(residency)
    slow.unlink()
    late.join(60)
    assert late.exitcode == 0


def _on_turn(residency: Residency) -> bool:
    with residency._table() as table:
        return residency._on_turn(table)


def _take(opened: Open, names: list[str]) -> None:
    opened()[0].take(names)


def test_while_one_is_loaded_only_those_who_need_it_wait(opened: Open, tmp_path: Path) -> None:
    quick, _ = opened()
    quick.take(["a"])
    quick.give_back(["a"])
    slow = tmp_path / "models" / "slow"
    slow.touch()
    loading = threading.Thread(target=_take, args=(opened, ["b"]), daemon=True)
    loading.start()
    _until(lambda: _is_moving(quick, "b"))
    quick.take(["a"], _give_up_after(0))
    with pytest.raises(Cancelled):
        quick.take(["b"], _give_up_after(3))
    slow.unlink()
    quick.take(["b"], _give_up_after(3000))
    loading.join(60)
    assert not loading.is_alive()


def test_a_full_disk_leaves_nothing_held_or_waiting(opened: Open, start: Start) -> None:
    child = start(_take_on_a_full_disk, opened)
    child.join(60)
    assert child.exitcode == 0


def _take_on_a_full_disk(opened: Open) -> None:
    """No file may grow: like a disk without room."""
    residency, models = opened()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    with pytest.raises(OSError, match="File too large"):
        residency.take(["a"])  # no room for the table itself
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    residency.take(["a"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    residency.give_back(["a"])
    for names in (["b", "c"], ["a"], ["d"]):
        residency.take(names, _give_up_after(0))
        residency.give_back(names)
    assert models.moves == ["+a", "-a", "+b", "+c", "-b", "+a", "-c", "+d"]


def test_who_dies_while_it_writes_leaves_the_table_as_it_was(opened: Open, tmp_path: Path) -> None:
    residency, _ = opened()
    residency.take(["a"])
    before = (tmp_path / "table").read_bytes()
    residency.give_back(["a"])
    after = bytearray((tmp_path / "table").read_bytes())
    assert before[0] != after[0]
    after[0] = before[0]  # the last byte to be written
    (tmp_path / "table").write_bytes(after)
    assert _holders(residency, "a") == 1


@pytest.mark.parametrize("seed", range(3))
def test_many_processes_with_random_sets_all_get_theirs(
    opened: Open, start: Start, tmp_path: Path, seed: int
) -> None:
    children = [start(_work, opened, seed * 10 + i) for i in range(4)]
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    loaded = {p.name for p in (tmp_path / "models").iterdir()}
    with opened()[0]._table() as table:
        assert loaded == set(table.residents)
        assert not any(r.holders or r.mover for r in table.residents.values())
        assert table.waiting == {}
    assert sum(SIZES[name] for name in loaded) <= 8


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

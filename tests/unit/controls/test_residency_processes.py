"""Which ControlNets are loaded: real processes on one shared table, some of which die."""

from __future__ import annotations

import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from tessera.controls.residency import Residency
from tessera.errors import Cancelled
from tessera.shared.processes import identity
from tests.fakes.residency import (
    FORK,
    SIZES,
    Open,
    Start,
    give_up_after,
    holders,
    is_moving,
    take,
    until,
)
from tests.samples.waiting import PATIENCE_S


def test_who_holds_one_that_is_loaded_again_goes_on_holding_it(opened: Open, start: Start) -> None:
    first, models = opened()
    first.take(["a"])
    models.unload("a")  # its process has died
    child = start(_take_and_give_back, opened)
    child.join(PATIENCE_S)
    assert child.exitcode == 0
    with pytest.raises(Cancelled):
        first.take(["b", "c"], give_up_after(3))  # "a" is still held, so there is no room


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
    until(lambda: holders(residency, "a") == 2)
    assert residency.take(["d"], give_up_after(3000)) > 300
    stop.set()
    residency.give_back(["d"])
    for worker in workers:
        worker.join(PATIENCE_S)
    assert [worker.exitcode for worker in workers] == [0, 0]


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
        until(lambda: others.is_set() or other_waits() or stop.is_set())
        residency.give_back(["a", "b"])


def test_what_a_dead_process_held_or_was_loading_is_free(opened: Open, start: Start) -> None:
    residency, models = opened()
    child = start(_take_and_die, opened)
    child.join(PATIENCE_S)
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
    residency.take(["b", "c"], give_up_after(0))
    assert models.moves == ["-a", "+b", "+c"]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _take_and_die(opened: Open) -> None:
    """Exit status 0 if it died holding "a"."""
    try:
        residency, _ = opened()
        residency.take(["a"])
        os._exit(0 if holders(residency, "a") == 1 else 1)
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
    child = start(take, opened, ["a"])
    until(lambda: is_moving(residency, "a"))
    child.kill()
    child.join(PATIENCE_S)
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
    late = start(take, opened, ["a", "b"])
    until(lambda: not _on_turn(residency))
    residency.give_back(["d"])
    until(lambda: is_moving(residency, "a"))
    assert not models.is_ready("a"), "it is not loading"
    assert _on_turn(residency)
    slow.unlink()
    late.join(PATIENCE_S)
    assert late.exitcode == 0


def _on_turn(residency: Residency) -> bool:
    with residency._table() as table:
        return residency._on_turn(table)


def test_a_full_disk_leaves_nothing_held_or_waiting(opened: Open, start: Start) -> None:
    child = start(_take_on_a_full_disk, opened)
    child.join(PATIENCE_S)
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
        residency.take(names, give_up_after(0))
        residency.give_back(names)
    assert models.moves == ["+a", "-a", "+b", "+c", "-b", "+a", "-c", "+d"]


@pytest.mark.parametrize("seed", range(3))
def test_many_processes_with_random_sets_all_get_theirs(
    opened: Open, start: Start, tmp_path: Path, seed: int
) -> None:
    children = [start(_work, opened, seed * 10 + i) for i in range(4)]
    for child in children:
        child.join(PATIENCE_S)
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

"""Which ControlNets are loaded: one process, with models that count."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tessera.controls.residency import loaded
from tessera.errors import Cancelled, InvalidInput, Unavailable
from tests.fakes.residency import Open, give_up_after, holders, is_moving, take, until
from tests.samples.waiting import PATIENCE_S


def test_the_longest_unused_leaves(opened: Open) -> None:
    residency, models = opened()
    for name in ("a", "b", "a", "c", "a"):
        residency.take([name])
        residency.give_back([name])
    assert models.moves == ["+a", "+b", "-b", "+c"]


def test_which_are_loaded_shows_without_the_lock(opened: Open, tmp_path: Path) -> None:
    residency, models = opened()
    assert loaded(residency._path) == []
    seen: list[list[str]] = []
    load = models.load
    models.load = lambda name: (seen.append(loaded(residency._path)), load(name))  # type: ignore
    for names in (["b"], ["a"], ["c"]):
        residency.take(names)
        residency.give_back(names)
    assert seen == [[], ["b"], ["a"]]  # one that is moving is not loaded
    assert loaded(residency._path) == ["a", "c"]
    assert loaded(tmp_path / "none") == []


def test_several_at_once_and_the_same_twice(opened: Open) -> None:
    residency, models = opened()
    residency.take(["a", "b"])
    residency.take(["b", "a"])
    residency.give_back(["a", "b"])
    with pytest.raises(Cancelled):
        residency.take(["c"], give_up_after(3))  # they are still held, once
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
    residency.take(["a"], give_up_after(0))  # at once, though there is no room but its own
    assert models.moves == ["+b", "-b", "+c"]


def test_what_does_not_fit_is_refused(opened: Open) -> None:
    residency, models = opened(pinned=("d",))
    with pytest.raises(InvalidInput, match="CONTROLS names a, b; accepted: ControlNets of at most"):
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


def test_while_one_is_loaded_only_those_who_need_it_wait(opened: Open, tmp_path: Path) -> None:
    quick, _ = opened()
    quick.take(["a"])
    quick.give_back(["a"])
    slow = tmp_path / "models" / "slow"
    slow.touch()
    loading = threading.Thread(target=take, args=(opened, ["b"]), daemon=True)
    loading.start()
    until(lambda: is_moving(quick, "b"))
    quick.take(["a"], give_up_after(0))
    with pytest.raises(Cancelled):
        quick.take(["b"], give_up_after(3))
    slow.unlink()
    quick.take(["b"], give_up_after(3000))
    loading.join(PATIENCE_S)
    assert not loading.is_alive()


def test_who_dies_while_it_writes_leaves_the_table_as_it_was(opened: Open, tmp_path: Path) -> None:
    residency, _ = opened()
    residency.take(["a"])
    before = (tmp_path / "table").read_bytes()
    residency.give_back(["a"])
    after = bytearray((tmp_path / "table").read_bytes())
    assert before[0] != after[0]
    after[0] = before[0]  # the last byte to be written
    (tmp_path / "table").write_bytes(after)
    assert holders(residency, "a") == 1

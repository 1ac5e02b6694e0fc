"""Locks that tell whether somebody waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tessera.templates.files import locked, waited_for
from tessera.templates.turn import Turn
from tests.samples.waiting import comes

Held = Callable[[], AbstractContextManager[object]]
LIMIT_S = 30


def turn(_: Path) -> tuple[Held, Callable[[], bool]]:
    one = Turn()
    return lambda: one, one.waited_for


def file(folder: Path) -> tuple[Held, Callable[[], bool]]:
    path = folder / ".key.lock"
    return lambda: locked(path), lambda: waited_for(path)


@pytest.mark.parametrize("kind", [turn, file])
def test_the_holder_sees_who_waits(
    kind: Callable[[Path], tuple[Held, Callable[[], bool]]], tmp_path: Path
) -> None:
    """As long as somebody does, and nobody before or after."""
    held, waited = kind(tmp_path)
    order = list[str]()

    def wait(name: str) -> None:
        with held():
            order.append(name)

    assert not waited()
    with held():
        assert not waited()
        threads = [threading.Thread(target=wait, args=(name,)) for name in ("first", "second")]
        for thread in threads:
            thread.start()
        comes(waited)
        order.append("holder")
    for thread in threads:
        thread.join(LIMIT_S)
    assert order[0] == "holder"
    assert sorted(order[1:]) == ["first", "second"]
    assert not waited()
    assert not list(tmp_path.iterdir())


def test_whoever_does_not_wait_is_not_waited_for(tmp_path: Path) -> None:
    path, one = tmp_path / ".key.lock", Turn()
    with locked(path), locked(path, wait=False) as second, one:
        assert not second
        assert not waited_for(path)
        assert not one.acquire(blocking=False)
        assert not one.waited_for()
    assert one.acquire(blocking=False)
    one.release()


def test_an_error_gives_the_turn_back() -> None:
    one = Turn()
    with pytest.raises(KeyError), one:
        raise KeyError
    assert one.acquire(blocking=False)

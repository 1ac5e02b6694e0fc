"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


PATIENCE_S = 300.0
"""For what takes seconds: the end of a hang, on however busy a machine."""


def until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    """Return when it holds, or after so many seconds; whether it held. It is not asked again: what
    comes may go.
    """
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return held


def comes(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Return when it holds.

    Raises:
        AssertionError: it does not within so many seconds.
    """
    assert until(condition, seconds), "it never came"


def again_until(ask: Callable[[], T], right: Callable[[T], object], seconds: float = 240.0) -> T:
    """The first answer that is right: what meets by chance is asked for until it has met.

    Raises:
        AssertionError: none is within so many seconds. It has the last one.
    """
    end = time.monotonic() + seconds
    while not right(answer := ask()):
        assert time.monotonic() < end, f"it never came about, the last was {answer}"
    return answer

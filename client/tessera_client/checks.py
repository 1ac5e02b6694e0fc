"""Values that callers give, checked before anything is sent.

A value of a wrong type raises TypeError, and another one that is not accepted ValueError. The
sentence is as a server's: the name, the value, and what is accepted.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from tessera.errors import brief


def wrong_type(field: str, value: object, accepted: str) -> TypeError:
    """The error of a value that is of no accepted type."""
    return TypeError(f"{field} is {brief(value)}; accepted: {accepted}")


def wrong_value(field: str, value: object, accepted: str) -> ValueError:
    """The error of a value that is not accepted, though its type is."""
    return ValueError(f"{field} is {brief(value)}; accepted: {accepted}")


def text_of(field: str, value: Any) -> str:
    """A text.

    Raises:
        TypeError: it is none.
        ValueError: it has half a character (a surrogate), which cannot be sent.
    """
    if not isinstance(value, str):
        raise wrong_type(field, value, "a str")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise wrong_value(field, value, "a str that can be written in UTF-8") from None
    return value


def integer_of(field: str, value: Any, low: int, high: int) -> int:
    """An integer from `low` to `high`; numpy's count, too. No float, though it be whole.

    Raises:
        TypeError: it is none.
        ValueError: it is outside.
    """
    accepted = f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise wrong_type(field, value, accepted)
    if not low <= int(value) <= high:
        raise wrong_value(field, int(value), accepted)
    return int(value)


def number_of(field: str, value: Any) -> float:
    """A number, of whatever value: the server says what it accepts.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong_type(field, value, "a number")
    return float(value)


def flag_of(field: str, value: Any) -> bool:
    """True or false.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise wrong_type(field, value, "True or False")
    return value


def seconds_of(field: str, value: Any) -> float:
    """A number of seconds to wait.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 0.
    """
    seconds = number_of(field, value)
    if not math.isfinite(seconds) or seconds <= 0:
        raise wrong_value(field, value, "a number of seconds above 0")
    return seconds


def choice_of(field: str, value: Any, accepted: Sequence[str]) -> str:
    """One of a few words.

    Raises:
        TypeError: it is no text.
        ValueError: it is another one.
    """
    if text_of(field, value) not in accepted:
        raise wrong_value(field, value, ", ".join(accepted))
    return str(value)


def callback_of(field: str, value: Any, *, awaits: bool) -> Callable[[Any], Any] | None:
    """What a client calls with news; `None` for nothing.

    Args:
        field: its name.
        value: what the caller gave.
        awaits: whether the client can await it.

    Raises:
        TypeError: it cannot be called, or only an asyncio client could.
    """
    if value is None:
        return None
    if not callable(value):
        raise wrong_type(field, value, "a function of one argument")
    if not awaits and inspect.iscoroutinefunction(value):
        raise wrong_type(field, value, "a plain function; AsyncClient takes coroutine functions")
    return value

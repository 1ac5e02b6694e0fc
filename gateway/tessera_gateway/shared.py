"""Answers that several callers share: many who watch a job ask the server once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """An answer, or the error instead, serves all who ask for the same key within some time.

    Args:
        ask: asks for it.
        seconds: how long an answer serves, from when it was asked for.
        none_seconds: how long `None` does, and an error; as long as an answer if left out.
    """

    def __init__(
        self,
        ask: Callable[[str], Coroutine[Any, Any, T]],
        seconds: float,
        none_seconds: float | None = None,
    ) -> None:
        self._ask = ask
        self._seconds = seconds
        self._none_seconds = seconds if none_seconds is None else none_seconds
        self._asked: dict[str, tuple[float, asyncio.Task[T]]] = {}

    async def get(self, key: str) -> T:
        """The answer. A caller that is cancelled does not end it for the others."""
        now = time.monotonic()
        self._asked = {
            k: kept for k, kept in self._asked.items() if now - kept[0] < self._serves(kept[1])
        }
        if key not in self._asked:
            task = asyncio.create_task(self._ask(key))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._asked[key] = now, task
        return await asyncio.shield(self._asked[key][1])

    def _serves(self, task: asyncio.Task[T]) -> float:
        """For how many seconds."""
        if not task.done():
            return math.inf
        nothing = task.cancelled() or task.exception() or task.result() is None
        return self._none_seconds if nothing else self._seconds

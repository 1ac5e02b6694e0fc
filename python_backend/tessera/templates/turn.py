"""A lock whose holder sees that somebody waits for it. Knows nothing of templates."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


class Turn:
    """Threads take turns, as with `threading.Lock`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[int] = set()

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take it; whether that worked, which is certain with `blocking`."""
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        thread = threading.get_ident()
        self._waiting.add(thread)
        try:
            return self._lock.acquire()
        finally:
            self._waiting.discard(thread)

    def release(self) -> None:
        """Let the next one have it."""
        self._lock.release()

    def waited_for(self) -> bool:
        """Whether a thread waits."""
        return bool(self._waiting)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

"""A cache that forgets what has not been used for longest once it holds too many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLru(Generic[K, V]):
    """Usable from several threads.

    Args:
        budget: bytes that the values together may take; what is larger alone is not kept.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def get(self, key: K) -> V | None:
        """The value, which counts as used; `None` if it is not (or no longer) held."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: K, value: V, nbytes: int) -> None:
        """Keep a value and forget others as far as the budget asks for it."""
        with self._lock:
            self._drop(key)
            if nbytes > self._budget:
                return
            self._held[key] = (value, nbytes)
            self.nbytes += nbytes
            while self.nbytes > self._budget:
                self._drop(next(iter(self._held)))

    def __contains__(self, key: K) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def _drop(self, key: K) -> None:
        if key in self._held:
            self.nbytes -= self._held.pop(key)[1]

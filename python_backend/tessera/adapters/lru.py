"""A cache with a byte budget that evicts the least recently used values."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLru(Generic[K, V]):
    """A least recently used cache, safe to use from several threads.

    Args:
        budget: bytes that all values may take together. A larger single value is not kept.

    Attributes:
        nbytes: bytes that all values take now.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def get(self, key: K) -> V | None:
        """The value of a key, marked as used; `None` if it is not in the cache."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: K, value: V, nbytes: int) -> None:
        """Store a value, and evict others as far as the budget requires."""
        with self._lock:
            self._drop(key)
            if nbytes > self._budget:
                return
            self._entries[key] = (value, nbytes)
            self.nbytes += nbytes
            while self.nbytes > self._budget:
                self._drop(next(iter(self._entries)))

    def items(self) -> list[tuple[K, V]]:
        """All entries, least recently used first; none is marked as used."""
        with self._lock:
            return [(key, value) for key, (value, _) in self._entries.items()]

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, key: K) -> None:
        if key in self._entries:
            self.nbytes -= self._entries.pop(key)[1]

"""Recorded steps in host and GPU memory, evicted least recently used first.

Separate threads read entries from the tier below. Knows no files: callers pass a `read` function.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from tessera.types import Tensors

Name = tuple[str, int]
"""A recording's digest and a kept step."""

_READS, _RECENT_S = 16, 60.0
"""The read time is the median of at most this many reads, none older than this."""


@dataclass
class Counters:
    """A tier's reads and evictions since it was opened, and how full it is."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    bytes: int = 0
    entries: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Share of reads that found their entry in this tier; `None` before the first read."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else None


class StepMemory:
    """The tier in host memory.

    Args:
        budget: bytes. A larger entry is kept until the next entry arrives.
        threads: how many entries are read at the same time.
        pinned: whether to page-lock entries, so that they can be copied to a GPU while it
            computes.
    """

    def __init__(self, *, budget: int, threads: int = 2, pinned: bool = False) -> None:
        self.budget = budget
        self._pinned = pinned
        self.counters = Counters()
        self._reads: deque[tuple[float, float]] = deque(maxlen=_READS)  # (end, milliseconds)
        self._entries: OrderedDict[Name, Future[Tensors]] = OrderedDict()
        self._sizes: dict[Name, int] = {}
        self._lock = threading.RLock()
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="templates")

    @property
    def read_ms(self) -> float:
        """Milliseconds that a read from disk takes: the median of recent reads, or 0 without any.

        Through the median a single stall changes nothing. Through the age limit a slow disk is
        tried again.
        """
        with self._lock:
            oldest = time.monotonic() - _RECENT_S
            recent = [read_ms for end, read_ms in self._reads if end > oldest]
        return statistics.median(recent) if recent else 0.0

    @property
    def tiers(self) -> dict[str, Counters]:
        """Counters of this tier and the tiers below, by name."""
        return {"memory": self.counters}

    def ahead(self, name: Name, read: Callable[[], Tensors]) -> None:
        """Start reading an entry that will be needed soon, unless this tier has it."""
        with self._lock:
            if name not in self._entries:
                self._begin(name, read)

    def get(self, name: Name, read: Callable[[], Tensors]) -> Future[Tensors]:
        """A future of an entry, which may still be read.

        If `read` raises, the future has its exception and the entry is dropped.
        """
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                self.counters.misses += 1
                return self._begin(name, read)
            self.counters.hits += 1
            self._entries.move_to_end(name)
            return entry

    def holds(self, name: Name) -> bool:
        """Whether an entry is in memory; False while it is still being read."""
        with self._lock:
            return name in self._sizes

    def drop(self, digest: str) -> None:
        """Drop all entries of a recording."""
        with self._lock:
            for name in [n for n in self._entries if n[0] == digest]:
                self._remove(name)

    def _begin(self, name: Name, read: Callable[[], Tensors]) -> Future[Tensors]:
        future = self._readers.submit(self._timed, read)
        self._entries[name] = future
        self.counters.entries = len(self._entries)
        future.add_done_callback(lambda done: self._arrived(name, done))
        return future

    def _timed(self, read: Callable[[], Tensors]) -> Tensors:
        began = time.perf_counter()
        arrays = {name: self._placed(array) for name, array in read().items()}
        read_ms = 1e3 * (time.perf_counter() - began)
        with self._lock:
            self._reads.append((time.monotonic(), read_ms))
        return arrays

    def _placed(self, array: torch.Tensor) -> torch.Tensor:
        return array.pin_memory() if self._pinned else array

    def _arrived(self, name: Name, future: Future[Tensors]) -> None:
        with self._lock:
            if self._entries.get(name) is not future:
                return
            if future.exception() is not None:
                self._remove(name)
                return
            self._sizes[name] = sum(a.nbytes for a in future.result().values())
            self.counters.bytes += self._sizes[name]
            for other in list(self._entries):
                if self.counters.bytes <= self.budget or other == name:
                    break
                if other in self._sizes:
                    self._remove(other)
                    self.counters.evictions += 1

    def _remove(self, name: Name) -> None:
        self._entries.pop(name, None)
        self.counters.bytes -= self._sizes.pop(name, 0)
        self.counters.entries = len(self._entries)


class DeviceMemory(StepMemory):
    """The tier on a GPU. It reads every entry through the tier in host memory.

    Args:
        host: the tier below.
        device: `cuda:0` ...
        budget: bytes on the device.
    """

    def __init__(self, host: StepMemory, *, device: str, budget: int) -> None:
        super().__init__(budget=budget)
        self.host = host
        self._device = torch.device(device)

    @property
    def read_ms(self) -> float:
        """See `StepMemory.read_ms`."""
        return self.host.read_ms

    @property
    def tiers(self) -> dict[str, Counters]:
        """See `StepMemory.tiers`."""
        return {"device": self.counters, **self.host.tiers}

    def holds(self, name: Name) -> bool:
        """See `StepMemory.holds`."""
        return super().holds(name) or self.host.holds(name)

    def drop(self, digest: str) -> None:
        """See `StepMemory.drop`."""
        super().drop(digest)
        self.host.drop(digest)

    def _begin(self, name: Name, read: Callable[[], Tensors]) -> Future[Tensors]:
        return super()._begin(name, lambda: self.host.get(name, read).result())

    def _placed(self, array: torch.Tensor) -> torch.Tensor:
        return array.to(self._device, non_blocking=True)

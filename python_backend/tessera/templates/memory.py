"""Recorded steps in host and GPU memory, evicted least recently used first.

Separate threads read entries from the tier below. Knows no files: callers pass a `read` function.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile

import torch

from tessera.types import Tensors

Name = tuple[str, int]
"""A recording's digest and a kept step."""

_READS, _RECENT_S = 16, 60.0
"""The read time is the median of at most this many reads, none older than this."""

_AHEAD = 8
"""So many steps of recordings larger than the budget stay, though it is exceeded: those that were
read ahead last. An edit that goes on needs them next; one that has ended does not."""


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
        budget: bytes. Of a recording that is larger, the most recently used step makes room: steps
            are read one after the other, and the least recently used one is the next to be needed.
            Then others do, of recordings that are larger. A few that were read ahead may exceed it.
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
        self._used: OrderedDict[Name, None] = OrderedDict()  # entries that were not only read ahead
        self._large: set[Name] = set()  # entries here of recordings that are larger than the budget
        self._held: Counter[str] = Counter()
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

    @property
    def held(self) -> dict[str, dict[str, int]]:
        """Entries of every recording in this tier and the tiers below, by name and digest."""
        with self._lock:
            return {"memory": dict(self._held)}

    def ahead(self, name: Name, read: Callable[[], Tensors], *, whole: int = 0) -> None:
        """Start reading an entry that will be needed soon, unless this tier has it.

        Args:
            name: of the entry.
            read: reads it.
            whole: bytes of all entries of its recording.
        """
        with self._lock:
            if name not in self._entries:
                self._begin(name, read, whole)

    def get(self, name: Name, read: Callable[[], Tensors], *, whole: int = 0) -> Future[Tensors]:
        """A future of an entry, which may still be read. Arguments are those of `ahead`.

        If `read` raises, the future has its exception and the entry is dropped.
        """
        with self._lock:
            entry = self._entries.get(name)
            self._used[name] = None
            if entry is None:
                self.counters.misses += 1
                return self._begin(name, read, whole)
            self.counters.hits += 1
            self._entries.move_to_end(name)
            self._used.move_to_end(name)
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

    def _begin(self, name: Name, read: Callable[[], Tensors], whole: int) -> Future[Tensors]:
        future = self._readers.submit(self._timed, read)
        self._entries[name] = future
        self.counters.entries = len(self._entries)
        future.add_done_callback(lambda done: self._arrived(name, done, whole))
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

    def _arrived(self, name: Name, future: Future[Tensors], whole: int) -> None:
        with self._lock:
            if self._entries.get(name) is not future:
                return
            if future.exception() is not None:
                self._remove(name)
                return
            self._sizes[name] = sum(a.nbytes for a in future.result().values())
            self._held[name[0]] += 1
            if whole > self.budget:
                self._large.add(name)
            self.counters.bytes += self._sizes[name]
            for other in self._leaving(name, whole):
                if self.counters.bytes <= self.budget:
                    break
                if other in self._sizes:
                    self._remove(other)
                    self.counters.evictions += 1

    def _leaving(self, name: Name, whole: int) -> list[Name]:
        """What may leave for an entry, first to go first."""
        if whole <= self.budget:
            return list(takewhile(lambda other: other != name, self._entries))
        large = self._large - {name}  # others stay whole
        used = [other for other in self._used if other in large]
        own = [other for other in used if other[0] == name[0]]
        others = [other for other in used if other[0] != name[0]]
        ahead = [other for other in self._entries if other in large and other not in self._used]
        return [*own[::-1], *others, *ahead[:-_AHEAD]]

    def _remove(self, name: Name) -> None:
        self._entries.pop(name, None)
        self._used.pop(name, None)
        self._large.discard(name)
        if name in self._sizes:
            self.counters.bytes -= self._sizes.pop(name)
            self._held[name[0]] -= 1
            self._held += Counter()  # without those at 0
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

    @property
    def held(self) -> dict[str, dict[str, int]]:
        """See `StepMemory.held`."""
        with self._lock:
            return {"device": dict(self._held), **self.host.held}

    def holds(self, name: Name) -> bool:
        """See `StepMemory.holds`."""
        return super().holds(name) or self.host.holds(name)

    def drop(self, digest: str) -> None:
        """See `StepMemory.drop`."""
        super().drop(digest)
        self.host.drop(digest)

    def _begin(self, name: Name, read: Callable[[], Tensors], whole: int) -> Future[Tensors]:
        return super()._begin(name, lambda: self.host.get(name, read, whole=whole).result(), whole)

    def _placed(self, array: torch.Tensor) -> torch.Tensor:
        return array.to(self._device, non_blocking=True)

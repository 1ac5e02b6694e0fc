"""What ticks cost, measured: by refits and turns, and by the low-rank side path.

Everybody's next step costs, if sets take turns, a call for each set and the refits between them,
each spread over the steps that its set then keeps the engine for. By the side path it costs one
call, with low-rank inputs. The cheaper way is taken; a call of the side path whose cost is not
known is tried.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

MEASUREMENTS = 3
"""So many make a cost known: the first calls of a size are slower than later ones."""
KEPT = 7
FRESH_S = 600.0
"""Older measurements are forgotten: what else a machine does changes."""
GAIN = 0.95
"""The side path has to cost this much less, since it makes everybody wait for each other."""


@dataclass(frozen=True)
class Group:
    """Requests of one adapter set.

    Attributes:
        work: size of their call: latents of all rows.
        steps: that the longest of them still needs.
        active: whether the set is in the engine.
    """

    work: int
    steps: int
    active: bool


@dataclass
class Curve:
    """Milliseconds by size of a call: medians of the latest measurements, straight lines between
    them.
    """

    clock: Callable[[], float] = time.monotonic
    _points: dict[int, deque[tuple[float, float]]] = field(default_factory=dict)

    def add(self, size: int, ms: float) -> None:
        """Take a measurement into account."""
        self._points.setdefault(size, deque(maxlen=KEPT)).append((self.clock(), ms))

    def at(self, size: int) -> float | None:
        """The cost of a size within those that are known; else `None`."""
        known = self._known()
        place = bisect_left([s for s, _ in known], size)
        if place < len(known) and known[place][0] == size:
            return known[place][1]
        if 0 < place < len(known):
            (low, below), (high, above) = known[place - 1 : place + 1]
            return below + (above - below) * (size - low) / (high - low)
        return None

    def about(self, size: int) -> float | None:
        """As `at`, and beyond the known sizes in proportion to the nearest one."""
        known, found = self._known(), self.at(size)
        if found is not None or not known:
            return found
        nearest, ms = known[0] if size < known[0][0] else known[-1]
        return ms * size / nearest

    def _known(self) -> list[tuple[int, float]]:
        limit = self.clock() - FRESH_S
        fresh = {s: [ms for when, ms in p if when > limit] for s, p in self._points.items()}
        return sorted((s, median(p)) for s, p in fresh.items() if len(p) >= MEASUREMENTS)


@dataclass
class Costs:
    """Measured costs of calls, by size and (of the side path) ranks."""

    clock: Callable[[], float] = time.monotonic
    dense: Curve = field(init=False)
    side: dict[tuple[int, int], Curve] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dense = Curve(self.clock)

    def add(self, work: int, ms: float, *, ranks: tuple[int, int] | None) -> None:
        """Take a tick into account; `ranks` are those of a side path's call."""
        curve = self.dense if ranks is None else self.side.setdefault(ranks, Curve(self.clock))
        curve.add(work, ms)

    def side_is_cheaper(
        self, groups: Sequence[Group], ranks: tuple[int, int], *, refit_ms: float, quantum: int
    ) -> bool:
        """Whether to run these groups by one call of the side path.

        Args:
            groups: one for each adapter set.
            ranks: of the side path's call.
            refit_ms: what it costs to put a set into the engine.
            quantum: ticks that a set keeps the engine while others wait.
        """
        turns = self.turns_ms(groups, refit_ms=refit_ms, quantum=quantum)
        if turns is None:
            return False  # then it is measured first
        curve = self.side.get(ranks)
        side = curve.at(sum(g.work for g in groups)) if curve else None
        return len(groups) > 1 if side is None else side < GAIN * turns

    def turns_ms(self, groups: Sequence[Group], *, refit_ms: float, quantum: int) -> float | None:
        """One step of all groups by turns; `None` if no call has been measured."""
        total = 0.0
        for group in groups:
            call = self.dense.about(group.work)
            if call is None:
                return None
            total += call + (0 if group.active else refit_ms / min(quantum, group.steps))
        return total

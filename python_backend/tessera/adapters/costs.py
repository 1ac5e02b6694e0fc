"""What ticks cost, measured, and when requests would be done: by refits and turns, or by the
low-rank side path.

By turns each set waits for those before it, and has smaller calls and refits to pay; by the side
path everybody is done last, after as many calls as the longest request has steps. The way by which
the requests that are here are done earlier, on the average, is taken; if others wait for their
places, that by which the last one is. A call of the side path whose cost is not known is tried if
it would pay at the least that it can cost.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median

MEASUREMENTS = 3
"""So many make a cost known: the first calls of a size are slower than later ones."""
KEPT = 7
SIZES = 64
"""Sizes of calls that are remembered at a time; those measured last."""
FRESH_S = 600.0
"""Older measurements are forgotten: what else a machine does changes."""
GAIN = 0.95
"""The side path has to be this much better, lest noise decides."""


@dataclass(frozen=True)
class Group:
    """Requests of one adapter set.

    Attributes:
        work: size of their call: latents of all rows.
        steps: that the longest of them still needs.
        current: whether the set is in the engine.
        requests: how many they are.
    """

    work: int
    steps: int
    current: bool
    requests: int = 1


@dataclass
class Curve:
    """Milliseconds by size of a call: medians of the latest measurements, straight lines between
    them.
    """

    clock: Callable[[], float] = time.monotonic
    _points: dict[int, deque[tuple[float, float]]] = field(default_factory=dict)
    _sorted: list[tuple[int, float]] = field(default_factory=list)
    _until: float = -inf  # when `_sorted` is no longer true

    def add(self, size: int, ms: float) -> None:
        """Take a measurement into account."""
        self._points.setdefault(size, deque(maxlen=KEPT)).append((self.clock(), ms))
        if len(self._points) > SIZES:
            del self._points[min(self._points, key=lambda s: self._points[s][-1][0])]
        self._until = -inf

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

    def at_least(self, size: int) -> float:
        """What a size cannot cost less than: its own cost or the highest of smaller ones; 0 if none
        is known.
        """
        smaller = [ms for known, ms in self._known() if known < size]
        return self.at(size) or max(smaller, default=0.0)

    def _known(self) -> list[tuple[int, float]]:
        """Sizes that have been measured often enough of late, ascending, with their costs."""
        now = self.clock()
        if now >= self._until:
            limit = now - FRESH_S
            fresh = {s: [(t, ms) for t, ms in p if t > limit] for s, p in self._points.items()}
            known = {s: [ms for _, ms in p] for s, p in fresh.items() if len(p) >= MEASUREMENTS}
            self._sorted = sorted((size, median(times)) for size, times in known.items())
            self._until = FRESH_S + min((t for p in fresh.values() for t, _ in p), default=inf)
        return self._sorted


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

    def side_is_better(
        self,
        groups: Sequence[Group],
        ranks: tuple[int, int],
        *,
        refit_ms: float,
        quantum: int,
        full: bool = False,
    ) -> bool:
        """Whether to run these groups by calls of the side path.

        Args:
            groups: one for each adapter set.
            ranks: of the side path's call.
            refit_ms: what it costs to put a set into the engine.
            quantum: ticks that a set keeps the engine while others wait.
            full: whether requests may be waiting for the places of these.
        """
        by_turns = self._by_turns(groups, refit_ms, quantum)
        if by_turns is None:
            return False  # then it is measured first
        curve = self.side.get(ranks)
        if curve is not None and curve.at(sum(g.work for g in groups)) is not None:
            aside = _aside(groups, curve.about)
        elif len(groups) > 1:
            aside = _aside(groups, lambda size: self._least(size, ranks))
        else:
            return False
        if full:
            return max(aside) < GAIN * max(by_turns)
        return _mean(aside, groups) < GAIN * _mean(by_turns, groups)

    def _least(self, size: int, ranks: tuple[int, int]) -> float:
        """What a call of the side path cannot cost less than: what is known of smaller ranks and
        sizes, or without LoRAs.
        """
        lower = [c for own, c in self.side.items() if own[0] <= ranks[0] and own[1] <= ranks[1]]
        return max(curve.at_least(size) for curve in (self.dense, *lower))

    def _by_turns(
        self, groups: Sequence[Group], refit_ms: float, quantum: int
    ) -> list[float] | None:
        """When each group would be done by turns; `None` if no call has been measured."""
        calls = [self.dense.about(group.work) for group in groups]
        left, done, now = [group.steps for group in groups], [0.0] * len(groups), 0.0
        inside = [group.current for group in groups]
        order = sorted(range(len(groups)), key=lambda i: not inside[i])
        while any(left):
            for index in order:
                call, steps = calls[index], min(left[index], quantum)
                if call is None:
                    return None
                if steps:
                    now += steps * call + (0 if inside[index] else refit_ms)
                    done[index], left[index] = now, left[index] - steps
                    inside = [other == index for other in range(len(groups))]
        return done


def _aside(groups: Sequence[Group], cost: Callable[[int], float | None]) -> list[float]:
    """When each group would be done by the side path, whose calls shrink as groups end."""
    done, now, before = [0.0] * len(groups), 0.0, 0
    for index in sorted(range(len(groups)), key=lambda i: groups[i].steps):
        steps = groups[index].steps
        work = sum(g.work for g in groups if g.steps >= steps)
        now += (steps - before) * (cost(work) or 0.0)
        done[index], before = now, steps
    return done


def _mean(done: Sequence[float], groups: Sequence[Group]) -> float:
    """Over the requests."""
    total = sum(when * g.requests for when, g in zip(done, groups, strict=True))
    return total / sum(g.requests for g in groups)

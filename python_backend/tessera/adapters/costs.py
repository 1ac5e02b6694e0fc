"""Measured costs of ticks, and the choice between refits in turns and the low-rank side path.

In turns, each adapter set waits for the sets before it and pays for refits, but its calls are
smaller. On the side path all requests run together, for as many calls as the longest request has
steps. The path with the earlier mean finish of the running requests is chosen. If other requests
wait for slots, the path on which the last running request finishes earlier is chosen. A side path
call of unknown cost is tried if its lowest possible cost would pay off.

Knows numbers only.
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
"""A cost is known after this many measurements: the first calls of a size are slower."""
KEPT = 7
"""How many of a size's latest measurements are kept."""
SIZES = 64
"""How many sizes are remembered: the most recently measured."""
FRESH_S = 600.0
"""Older measurements are dropped, since the other load on a machine changes."""
GAIN = 0.95
"""The side path's time has to be below this share of the other, so that noise does not decide."""


@dataclass(frozen=True)
class Group:
    """Requests of one adapter set.

    Attributes:
        work: size of their call: number of latents in all rows.
        steps: remaining steps of the longest request.
        current: whether the set is in the engine now.
        requests: number of requests.
    """

    work: int
    steps: int
    current: bool
    requests: int = 1


@dataclass
class Curve:
    """Milliseconds by size of a call: medians of the latest measurements, interpolated linearly."""

    clock: Callable[[], float] = time.monotonic
    _points: dict[int, deque[tuple[float, float]]] = field(default_factory=dict)
    _sorted: list[tuple[int, float]] = field(default_factory=list)
    _until: float = -inf  # `_sorted` is valid until this time

    def add(self, size: int, ms: float) -> None:
        """Add a measurement."""
        self._points.setdefault(size, deque(maxlen=KEPT)).append((self.clock(), ms))
        if len(self._points) > SIZES:
            del self._points[min(self._points, key=lambda s: self._points[s][-1][0])]
        self._until = -inf

    def at(self, size: int) -> float | None:
        """The cost of a size within the range of known sizes; `None` outside of it."""
        known = self._known()
        index = bisect_left([s for s, _ in known], size)
        if index < len(known) and known[index][0] == size:
            return known[index][1]
        if 0 < index < len(known):
            (low, below), (high, above) = known[index - 1 : index + 1]
            return below + (above - below) * (size - low) / (high - low)
        return None

    def about(self, size: int) -> float | None:
        """Like `at`, but outside the known range in proportion to the nearest known size."""
        known, cost = self._known(), self.at(size)
        if cost is not None or not known:
            return cost
        nearest, ms = known[0] if size < known[0][0] else known[-1]
        return ms * size / nearest

    def at_least(self, size: int) -> float:
        """A lower bound of a size's cost: its cost, or the highest cost of a smaller size, or 0."""
        smaller = [ms for known, ms in self._known() if known < size]
        return self.at(size) or max(smaller, default=0.0)

    def _known(self) -> list[tuple[int, float]]:
        """Sizes with enough recent measurements, ascending, with their costs."""
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
    """Measured costs of calls, by size and, for the side path, by ranks."""

    clock: Callable[[], float] = time.monotonic
    dense: Curve = field(init=False)
    side: dict[tuple[int, int], Curve] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dense = Curve(self.clock)

    def add(self, work: int, ms: float, *, ranks: tuple[int, int] | None) -> None:
        """Add the measurement of a tick.

        Args:
            work: size of the call: number of latents in all rows.
            ms: its time.
            ranks: ranks of a side path call; `None` for the UNet's usual engines.
        """
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
        """Whether these groups should run on the side path.

        Args:
            groups: one for each adapter set.
            ranks: ranks of the side path call.
            refit_ms: milliseconds of a switch to another set.
            quantum: ticks that a set keeps the engine while others wait.
            full: whether other requests may be waiting for slots.
        """
        by_turns = self._by_turns(groups, refit_ms, quantum)
        if by_turns is None:
            return False  # so that turns are measured first
        curve = self.side.get(ranks)
        if curve is not None and curve.at(sum(g.work for g in groups)) is not None:
            on_side = _on_side(groups, curve.about)
        elif len(groups) > 1:
            on_side = _on_side(groups, lambda size: self._at_least(size, ranks))
        else:
            return False
        if full:
            return max(on_side) < GAIN * max(by_turns)
        return _mean(on_side, groups) < GAIN * _mean(by_turns, groups)

    def _at_least(self, size: int, ranks: tuple[int, int]) -> float:
        """A lower bound of a side path call: the cost known for smaller ranks and sizes, or without
        LoRAs.
        """
        lower = [c for r, c in self.side.items() if r[0] <= ranks[0] and r[1] <= ranks[1]]
        return max(curve.at_least(size) for curve in (self.dense, *lower))

    def _by_turns(
        self, groups: Sequence[Group], refit_ms: float, quantum: int
    ) -> list[float] | None:
        """When each group would finish in turns; `None` if no call has been measured."""
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


def _on_side(groups: Sequence[Group], cost: Callable[[int], float | None]) -> list[float]:
    """When each group would finish on the side path, whose calls shrink as groups finish."""
    done, now, before = [0.0] * len(groups), 0.0, 0
    for index in sorted(range(len(groups)), key=lambda i: groups[i].steps):
        steps = groups[index].steps
        work = sum(g.work for g in groups if g.steps >= steps)
        now += (steps - before) * (cost(work) or 0.0)
        done[index], before = now, steps
    return done


def _mean(done: Sequence[float], groups: Sequence[Group]) -> float:
    """Mean finish over the requests."""
    total = sum(when * g.requests for when, g in zip(done, groups, strict=True))
    return total / sum(g.requests for g in groups)

"""Decides which adapter set has the engine when requests need different sets.

A set keeps the engine until no request needs it, or until its quantum of ticks is over and others
wait. Then the set whose requests have waited longest gets its turn. So between the moment a set
begins to wait and its turn, every other set has the engine at most once. With n sets it waits for
at most (n - 1) * `MAX_QUANTUM` ticks and n refits.

The quantum grows with the cost of a refit, so that refits take at most `REFIT_SHARE` of the time,
as far as `MAX_QUANTUM` allows. Knows numbers and keys only.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MIN_QUANTUM, MAX_QUANTUM = 20, 100
"""Smallest and largest number of ticks that a set keeps the engine while others wait."""
REFIT_SHARE = 0.05
"""Largest share of the time that refits should take."""
_SMOOTHING = 0.3
"""Weight of the latest measurement in a running mean."""

K = TypeVar("K", bound=Hashable)


@dataclass
class Cost:
    """A running mean of measured milliseconds."""

    ms: float = 0.0

    def add(self, ms: float) -> None:
        """Add a measurement."""
        self.ms = ms if self.ms == 0 else self.ms + _SMOOTHING * (ms - self.ms)


@dataclass
class Turns(Generic[K]):
    """The turns of adapter sets. Call `choose` once per tick, and add measured costs.

    Attributes:
        current: the set that is in the engine.
        refit, tick: measured costs of refits and ticks.
    """

    current: K
    refit: Cost = field(default_factory=Cost)
    tick: Cost = field(default_factory=Cost)
    _since: dict[K, int] = field(default_factory=dict)
    _ticks: int = 0  # of the current turn
    _now: int = 0

    @property
    def quantum(self) -> int:
        """Ticks that the current set keeps the engine while others wait."""
        if self.tick.ms == 0:
            return MIN_QUANTUM
        affordable = math.ceil(self.refit.ms / (REFIT_SHARE * self.tick.ms))
        return min(max(MIN_QUANTUM, affordable), MAX_QUANTUM)

    def choose(self, wanted: Iterable[K]) -> K:
        """The set whose requests run in this tick.

        Args:
            wanted: the sets that requests need; not empty.
        """
        sets = dict.fromkeys(wanted)
        self._now += 1
        self._since = {k: self._since.get(k, self._now) for k in sets if k != self.current}
        if self.current not in sets or (self._since and self._ticks >= self.quantum):
            self.current = min(self._since, key=lambda k: self._since[k])
            del self._since[self.current]
            self._ticks = 0
        self._ticks = self._ticks + 1 if len(sets) > 1 else 0
        return self.current

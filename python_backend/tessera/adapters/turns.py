"""Whose turn it is, when requests want different adapter sets of one engine.

A set keeps the engine until nobody wants it any more, or until its quantum of ticks is over and
others wait. Then it is the turn of the set whose requests have waited for longest. So between the
moment a set begins to wait and its turn, every other set has the engine at most once: with n sets
wanted, it waits for at most (n - 1) * `MAX_QUANTUM` ticks and n refits.

The quantum grows with the price of a refit, so that refits take at most `REFIT_SHARE` of the time
as long as `MAX_QUANTUM` allows it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MIN_QUANTUM, MAX_QUANTUM = 20, 100
"""Ticks that a set keeps the engine at least and at most while others wait."""
REFIT_SHARE = 0.05
_SMOOTHING = 0.3

K = TypeVar("K", bound=Hashable)


@dataclass
class Cost:
    """A running mean of measured milliseconds."""

    ms: float = 0.0

    def add(self, ms: float) -> None:
        """Take a measurement into account."""
        self.ms = ms if self.ms == 0 else self.ms + _SMOOTHING * (ms - self.ms)


@dataclass
class Turns(Generic[K]):
    """Call `choose` once per tick, and tell the costs.

    Attributes:
        current: the set that is in the engine.
        refit, tick: measured costs.
    """

    current: K
    refit: Cost = field(default_factory=Cost)
    tick: Cost = field(default_factory=Cost)
    _since: dict[K, int] = field(default_factory=dict)
    _held: int = 0
    _now: int = 0

    @property
    def quantum(self) -> int:
        """Ticks that the current set keeps the engine while others wait."""
        if self.tick.ms == 0:
            return MIN_QUANTUM
        affordable = math.ceil(self.refit.ms / (REFIT_SHARE * self.tick.ms))
        return min(max(MIN_QUANTUM, affordable), MAX_QUANTUM)

    def choose(self, wanted: Iterable[K]) -> K:
        """The set whose requests are run in this tick; `wanted` is not empty."""
        sets = dict.fromkeys(wanted)
        self._now += 1
        self._since = {k: self._since.get(k, self._now) for k in sets if k != self.current}
        if self.current not in sets or (self._since and self._held >= self.quantum):
            self.current = min(self._since, key=lambda k: self._since[k])
            del self._since[self.current]
            self._held = 0
        self._held = self._held + 1 if len(sets) > 1 else 0
        return self.current

"""What something is expected to cost, from the latest times that it has cost. Standard library
only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

_WEIGHT = 0.2
"""Weight of the latest value in the moving average."""

OUTLIER = 3.0
"""A value is capped at this many times the moving average."""

FRESH_S = 60.0
"""An estimate of which nothing has been learnt for this long is not trusted, so that what was
expensive is tried again."""


@dataclass
class Estimate:
    """A moving average of measured values.

    Attributes:
        now: moving average.
        least: lowest value of the moving average.
        at: monotonic time of the latest value.
    """

    now: float
    least: float
    at: float = field(default_factory=time.monotonic, compare=False)

    @property
    def fresh(self) -> bool:
        """Whether something has been learnt lately."""
        return time.monotonic() - self.at < FRESH_S

    @property
    def expected(self) -> float:
        """The value that is expected next."""
        return self.now if self.fresh else self.least

    def learn(self, seen: float) -> None:
        """Update the moving average with a value."""
        self.now += _WEIGHT * (min(seen, OUTLIER * self.now) - self.now)
        self.least = min(self.least, self.now)
        self.at = time.monotonic()

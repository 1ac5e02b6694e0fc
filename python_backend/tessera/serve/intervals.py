"""How long to wait before a program that has ended by itself is started again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Intervals:
    """Those between the runs of one program: none behind its first end, and growing ones while it
    ends again and again.

    Attributes:
        quick_s: a run that takes less seconds was a quick one: it has failed to start, or failed
            soon.
        longest_s: the longest interval, in seconds.
    """

    quick_s: float
    longest_s: float
    _quick_runs: int = 0  # in a row

    def behind(self, seconds: float) -> float:
        """Seconds to wait behind a run that took so many: 0 at first, then 2, 4, 8 and so on."""
        self._quick_runs = self._quick_runs + 1 if seconds < self.quick_s else 0
        return min(2.0 ** (self._quick_runs - 1), self.longest_s) if self._quick_runs > 1 else 0.0

"""How many workers a fleet should have, by the work that they are predicted to have.

Ray Serve counts requests that go through it, and here none does. Seconds of predicted work also say
more than a count: an edit of a small mask is a tenth of a picture.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class Hold:
    """How long a request waits for a worker while there is none, and how many may."""

    seconds: float = 0.0
    requests: int = 0


class Autoscaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds and pace.

    Attributes:
        min, max: number of workers. With 0, the fleet has none while there is nothing to do.
        target_seconds: predicted work that a worker should have.
        up_delay, down_delay: seconds for which more, or fewer, workers have to be wanted.
        hold_seconds: how long a request waits while there is no worker.
        hold_requests: how many may wait.
    """

    min: int = 1
    max: int = 1
    target_seconds: float = 20.0
    up_delay: float = 5.0
    down_delay: float = 300.0
    hold_seconds: float = 300.0
    hold_requests: int = 100

    def fault(self) -> str | None:
        """What is not accepted: the end of a sentence that names the field."""
        checks = (
            ("min", self.min >= 0, "0 and above"),
            ("max", self.max >= max(1, self.min), "1 and above, and not below min"),
            ("target_seconds", self.target_seconds > 0, "above 0"),
            ("up_delay", self.up_delay >= 0, "0 and above"),
            ("down_delay", self.down_delay >= 0, "0 and above"),
            ("hold_seconds", self.hold_seconds > 0, "above 0"),
            ("hold_requests", self.hold_requests >= 1, "1 and above"),
        )
        for name, fine, accepted in checks:
            if not fine:
                return f"{name} is {getattr(self, name):g}; accepted: {accepted}"
        return None


class Decider:
    """Decides again and again.

    More workers come when, for all of `up_delay`, more were wanted: as many as the least that was
    wanted meanwhile. Fewer remain when, for all of `down_delay`, fewer were wanted: as many as the
    most that was. So a short peak starts nothing, and a short pause stops nothing.

    Args:
        settings: the operator's.
        count: workers that there are.

    Attributes:
        count: workers that there should be.
    """

    def __init__(self, settings: Autoscaling, count: int) -> None:
        self._settings = settings
        self.count = self._bounded(count)
        self._wanted: deque[tuple[float, int]] = deque()
        self._since: float | None = None

    def adopt(self, count: int) -> None:
        """There are so many already."""
        self.count = self._bounded(count)

    def decide(self, now: float, seconds: Collection[float], *, held: int = 0) -> int:
        """How many workers there should be from now on.

        Args:
            now: the time in seconds; never before the last one.
            seconds: predicted work of each worker.
            held: requests that wait for a first worker. They do not wait for `up_delay`, too.
        """
        settings = self._settings
        wanted = self._bounded(math.ceil(sum(seconds) / settings.target_seconds))
        if held:
            wanted = max(1, wanted)
        if self._since is None:
            self._since = now
        self._wanted.append((now, wanted))
        longest = max(settings.up_delay, settings.down_delay)
        while self._wanted[0][0] < now - longest:
            self._wanted.popleft()
        least = min(w for at, w in self._wanted if at >= now - settings.up_delay)
        most = max(w for at, w in self._wanted if at >= now - settings.down_delay)
        if least > self.count and now - self._since >= settings.up_delay:
            self.count = least
        elif most < self.count and now - self._since >= settings.down_delay:
            self.count = most
        if held and not self.count:
            self.count = 1
        return self.count

    def _bounded(self, count: int) -> int:
        return min(max(count, self._settings.min), self._settings.max)

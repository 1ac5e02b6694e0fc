"""What tests of the board share."""

from __future__ import annotations

SLOTS = 2


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1e9

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.now

"""Which processes are at work at jobs: a part of the board.

A process writes into a job's row that it works at it, and takes that back when it has done so. The
end of the job does not: it may come from another process, by the job's deadline, while this one
hangs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping

import numpy as np

from tessera.manifest import CONTROLNET
from tessera.shared.ends import Ends
from tessera.shared.rows import ended

_ALONE = ("encode", "decode")
"""Models that compute a job by themselves."""


class AtWork(Ends):
    """The work of a server's processes."""

    def hand_on(self, slot: int, ticket: int) -> None:
        """Say that this process has done its part of a job, which waits in a queue now if it has
        not ended.
        """
        if self.holds(slot, ticket):
            self._rows[slot]["touched"] = time.monotonic()
        self._leave(slot, ticket)

    def keep(self, slot: int, ticket: int) -> None:
        """Say that this process still has a job, which waits for its turn or for something else."""
        if self.holds(slot, ticket):
            self._rows[slot]["seen"] = time.monotonic()

    def pause(self, slot: int, ticket: int) -> None:
        """Say that a job has no slot in this tick: the time until its next step is not a step's."""
        if self.holds(slot, ticket):
            self._rows[slot]["touched"] = time.monotonic()

    def ask_denoise(self, slot: int, ticket: int) -> None:
        """Say that `denoise` is being asked for a job, and that this process waits for it."""
        if self.holds(slot, ticket):
            self._rows[slot]["asked"] = 1

    @contextlib.contextmanager
    def previewing(self) -> Iterator[None]:
        """Say meanwhile that this process is at a preview; only `decode` calls it."""
        self._header["previewing"] = os.getpid()
        try:
            yield
        finally:
            self._header["previewed"] = time.monotonic()
            self._header["previewing"] = 0

    def works(self, process: int) -> bool:
        """Whether a process has a job that has not ended."""
        return bool((self._rows["process"][~ended(self._rows)] == process).any())

    def tasks(self, running: Mapping[int, str]) -> dict[int, tuple[int, ...]]:
        """Which processes have to compute now. It takes no lock, which one that hangs may hold.

        A process of `encode` or `decode` that a job's row names has to: nothing is behind them that
        they could wait for. Processes of `render` and `edit` wait for others, mostly for `denoise`,
        and say so in the row. Then `denoise` has to, or, while it waits for a ControlNet's answer,
        that ControlNet. All others are never among them: a row does not tell whether they wait.

        Args:
            running: process id -> model, of all that live.

        Returns:
            Process id -> at what: tickets of jobs; for `denoise` and ControlNets, the number of the
            tick, which goes up as long as they work.
        """
        rows = self._rows[self._rows["process"] > 0]
        found: dict[int, tuple[int, ...]] = {}
        for pid, model in running.items():
            if model in _ALONE and len(own := rows[rows["process"] == pid]):
                found[pid] = tuple(sorted(own["ticket"].tolist()))
        asked = rows["process"][rows["asked"] > 0]
        if np.isin(asked, list(running)).any():
            waited_for = f"{CONTROLNET}{self.awaited}" if self.awaited else "denoise"
            found |= {pid: (self.tick,) for pid, model in running.items() if model == waited_for}
        return found

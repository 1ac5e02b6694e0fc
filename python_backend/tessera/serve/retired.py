"""Processes of models that have been loaded again since.

Triton lets them finish what they have, and then ends them. Those whose sibling was killed in the
middle of a request it never ends (2.51): 486 MB each, for good. So those that have nothing to do
are ended here. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from tessera.serve.idle import Idle, Work, own_work_of

LEFT_S = 30.0
"""So long a process may stay that has nothing to do, after its model was loaded again."""

_WITH_JOBS = ("edit", "render")
"""Models whose processes have jobs while they work, and may wait for others then. What others work
at, no board tells, but they are not idle meanwhile."""


@dataclass
class Retired:
    """Those of one server.

    Attributes:
        has_job: whether a process has a job on the board.
        work: see `own_work_of`. What calls read does not count: `jobs` looks at the board and at
            files each second, whether anybody asks or not.
    """

    has_job: Callable[[int], bool] = lambda pid: True
    work: Callable[[int], Work | None] = own_work_of
    _since: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._idle = Idle(LEFT_S, self.work)

    def __contains__(self, pid: int) -> bool:
        return pid in self._since

    def add(self, pid: int) -> None:
        """One whose model is going to be loaded again."""
        self._since[pid] = time.monotonic()

    def end(self, running: Mapping[int, str], loading: Container[str]) -> None:
        """End those that stay for nothing.

        Args:
            running: every model process: process id -> model.
            loading: models that have not been loaded again yet.
        """
        self._since = {pid: since for pid, since in self._since.items() if pid in running}
        loaded = {pid for pid in self._since if running[pid] not in loading}
        with_jobs = {pid for pid in loaded if running[pid] in _WITH_JOBS}
        done = {pid for pid in with_jobs if not self.has_job(pid)}
        now = time.monotonic()
        self._since = {pid: since if pid in done else now for pid, since in self._since.items()}
        left = {pid for pid in done if now - self._since[pid] > LEFT_S}
        for pid in left | self._idle.among(dict.fromkeys(loaded - with_jobs)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

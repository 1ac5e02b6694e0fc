"""Processes of models that have been loaded again since.

Triton lets them finish what they have, and then ends them. Those whose sibling was killed in the
middle of a request it never ends (2.51): 486 MB each, for good. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

LEFT_S = 30.0
"""So long a process may stay after its model was loaded again."""

_WITH_JOBS = ("edit", "render")
"""Models whose processes have jobs while they work; what others do cannot be told."""


@dataclass
class Retired:
    """Those of one server.

    Attributes:
        has_job: whether a process has a job on the board.
    """

    has_job: Callable[[int], bool] = lambda pid: True
    _since: dict[int, float] = field(default_factory=dict)

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
        for pid, since in self._since.items():
            model = running[pid]
            if model not in _WITH_JOBS or model in loading or self.has_job(pid):
                self._since[pid] = time.monotonic()
            elif time.monotonic() - since > LEFT_S:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

"""Model processes that hang while they serve: stopped, deadlocked, or in a call of a driver that
never returns.

Callers would wait for them until their timeouts, and so would all that come later. What tells such
a process from a slow one is that it does nothing at all, though it has to: an idle server does
nothing either. From one that is stopped Triton takes its work away after a second, with an error,
and so it does with all that comes later (2.51). It may hold a lock that all others need. So one
that stays stopped is ended in any case, before the others. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from tessera.serve.idle import Idle, Work, is_stopped, work_of
from tessera.serve.starts import STALL_S

Tasks = Callable[[Mapping[int, str]], Mapping[int, Hashable]]
"""(process id -> model, of all) -> of those that have to work: process id -> at what. Two looks
find the same if nothing has been finished in between."""

_GO_ON = "go on"
"""The task of a process that is stopped and has no other."""


@dataclass
class Hangs:
    """Those of one server.

    Attributes:
        say: called with a line for the operator.
        tasks: which processes have to work.
        limit: seconds after which one that does nothing is ended.
        work: see `work_of`.
    """

    say: Callable[[str], None]
    tasks: Tasks = lambda running: {}
    limit: float = STALL_S
    work: Callable[[int], Work | None] = work_of

    def __post_init__(self) -> None:
        self._idle = Idle(self.limit, self.work)
        self._ended: set[int] = set()
        self._tasks: dict[int, Hashable] = {}  # of the last look
        self._stopped: set[int] = set()  # at the last look

    def end(self, running: Mapping[int, str]) -> None:
        """End the processes that hang; whoever sees to ended ones has their models loaded again.

        Args:
            running: the model processes: process id -> model.
        """
        self._ended &= running.keys()
        left = {pid: model for pid, model in running.items() if pid not in self._ended}
        stopped = {pid for pid in left if is_stopped(pid)}
        had = {pid: task for pid, task in self._tasks.items() if pid in stopped}
        # From the second look on: one that is stopped in its start is for `Starts` to end.
        self._tasks = {**dict.fromkeys(stopped & self._stopped, _GO_ON), **had, **self.tasks(left)}
        self._stopped = stopped
        found = self._idle.among(self._tasks)
        if stopped:
            found &= stopped  # the others may wait for what one of these holds
        for pid in found:
            self._end(pid, running[pid])
        if found & stopped:
            self._idle = Idle(self.limit, self.work)

    def _end(self, pid: int, model: str) -> None:
        done = "has done nothing for {} s though it had work"
        if self._tasks[pid] == _GO_ON:
            done = "has been stopped for {} s"
        self.say(f"a process of model {model} {done.format(round(self.limit))}; ending it")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._ended.add(pid)

"""Starts of model processes that never end.

On 2.51 it has happened that a process came to a stop in the middle of its start, for no reason that
was found. Triton waits for it without end, and so does every request for its model. What tells such
a process from one that reads a large model is that it does nothing at all. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tessera.serve.idle import Idle, Work, work_of
from tessera.serve.repository import LOADING, READY

STALL_S = 60.0
"""A process that has done nothing for so long while it started, or had work, is ended."""


@dataclass(frozen=True)
class _Ended:
    """When a start was ended, and which processes there were."""

    at: float
    running: frozenset[int]


@dataclass
class Starts:
    """Those of one server.

    Attributes:
        say: called with a line for the operator.
        limit: seconds after which a process that does nothing is ended.
        work: see `work_of`.
        clock: seconds.
    """

    say: Callable[[str], None]
    limit: float = STALL_S
    work: Callable[[int], Work | None] = work_of
    clock: Callable[[], float] = time.monotonic
    _over: set[int] = field(default_factory=set)  # processes that are in no start
    _ended: dict[str, _Ended] = field(default_factory=dict)  # model -> when its start was ended

    def __post_init__(self) -> None:
        self._idle = Idle(self.limit, self.work)

    def stalled(self, processes: Iterable[int]) -> bool:
        """Whether none of them has done anything for the limit: a server that is not ready yet
        does not say which of its models it waits for.
        """
        wanted = dict.fromkeys(processes)
        return bool(wanted) and self._idle.among(wanted) == wanted.keys()

    def look(self, running: Mapping[int, str], state: Callable[[str], str | None]) -> bool:
        """End processes that are stuck in their start; Triton then gives up loading their model.

        Returns:
            Whether it has not given up for as long again: it waits for a lock that such a process
            held, and only its own end helps.

        Args:
            running: the model processes to look at: process id -> model.
            state: of a model, as Triton names it; `None` if it does not say.
        """
        self._over &= running.keys()
        for pid in self._idle.among(dict.fromkeys(running.keys() - self._over)):
            model = running[pid]
            of_model = state(model)
            if of_model == READY:
                self._over.add(pid)
            elif of_model == LOADING:
                self.say(
                    f"a process of model {model} has done nothing for {self.limit:.0f} s while it "
                    "started; ending it"
                )
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._over.add(pid)
                self._ended[model] = _Ended(self.clock(), frozenset(running))
        return any(self._waits(model, running, state(model)) for model in list(self._ended))

    def _waits(self, model: str, running: Mapping[int, str], state: str | None) -> bool:
        """Whether the server waits in vain for a process that has been ended."""
        ended = self._ended[model]
        goes_on = any(m == model and pid not in ended.running for pid, m in running.items())
        if goes_on or state not in (LOADING, None):
            del self._ended[model]
            return False
        if state is None or self.clock() - ended.at <= self.limit:
            return False
        self.say(f"tritonserver still waits for that process of model {model}; ending it, too")
        return True

"""A tritonserver that hangs: it answers nothing, and nothing of it does anything.

Its process lives, so nobody is told of an end. One that is slow computes, reads, or answers late,
and is left alone. So is one that has nothing to do, since it answers. Standard library only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tessera.serve.idle import Idle, Work, own_work_of, work_of
from tessera.serve.starts import STALL_S

_ASKS = 12
"""How many questions are asked within the limit. Each may be answered until it is over: a thread of
the server's may wait for a model that is being loaded, and another thread answers the next one."""


@dataclass
class Silence:
    """That of one server.

    Attributes:
        say: called with a line for the operator.
        limit: seconds after which a server that neither answers nor does anything hangs.
        work: of a model's process, see `work_of`.
        own_work: of the server's, see `own_work_of`.
        clock: seconds.
    """

    say: Callable[[str], None]
    limit: float = STALL_S
    work: Callable[[int], Work | None] = work_of
    own_work: Callable[[int], Work | None] = own_work_of
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._models, self._server = self._idles()
        self._answers = 0
        self._asked = -self.limit
        self._open = 0  # questions since the latest answer

    @property
    def owing(self) -> bool:
        """Whether the server owes more than one answer: better ask it nothing else meanwhile."""
        return self._open > 1

    def hangs(self, server: int, models: Iterable[int], answers: Callable[[float], bool]) -> bool:
        """Whether none of the processes has done anything for the limit, nor has the server
        answered before and meanwhile; says so.

        Args:
            server: tritonserver's process.
            models: those of models.
            answers: asks the server; whether it answers within so many seconds.
        """
        if self.clock() - self._asked >= self.limit / _ASKS:
            self._asked = self.clock()
            self._open += 1
            threading.Thread(target=self._ask, args=(answers,), daemon=True).start()
        if not self.owing:  # then nobody has to look at processes, which costs some milliseconds
            return False
        tasks = dict.fromkeys(models, self._answers)  # counted anew behind every answer
        idle = self._models.among(tasks) == tasks.keys()
        if not self._server.among({server: self._answers}) or not idle:
            return False
        self.say(f"tritonserver has neither answered nor done anything for {self.limit:.0f} s")
        self._models, self._server = self._idles()
        return True

    def _idles(self) -> tuple[Idle, Idle]:
        return Idle(self.limit, self.work), Idle(self.limit, self.own_work)

    def _ask(self, answers: Callable[[float], bool]) -> None:
        if answers(self.limit):
            self._answers += 1
            self._open = 0

"""A tritonserver that hangs: it answers nothing, and nothing of it does anything.

Its process lives, so nobody is told of an end. One that is slow computes, reads, or answers late,
and is left alone. So is one that has nothing to do, since it answers. Standard library only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tessera.serve.idle import Idle, Work, work_of
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
        work: see `work_of`.
        clock: seconds.
    """

    say: Callable[[str], None]
    limit: float = STALL_S
    work: Callable[[int], Work | None] = work_of
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._idle = Idle(self.limit, self.work)
        self._answers = 0
        self._asked = -self.limit
        self._open = 0  # questions since the latest answer

    @property
    def owing(self) -> bool:
        """Whether the server owes more than one answer: better ask it nothing else meanwhile."""
        return self._open > 1

    def hangs(self, processes: Iterable[int], answers: Callable[[float], bool]) -> bool:
        """Whether none of the processes has done anything for the limit, nor has the server
        answered before and meanwhile; says so.

        Args:
            processes: all of the server's.
            answers: asks the server; whether it answers within so many seconds.
        """
        if self.clock() - self._asked >= self.limit / _ASKS:
            self._asked = self.clock()
            self._open += 1
            threading.Thread(target=self._ask, args=(answers,), daemon=True).start()
        if not self.owing:  # then nobody has to look at processes, which costs some milliseconds
            return False
        tasks = dict.fromkeys(processes, self._answers)  # counted anew behind every answer
        if not tasks or self._idle.among(tasks) != tasks.keys():
            return False
        self.say(f"tritonserver has neither answered nor done anything for {self.limit:.0f} s")
        self._idle = Idle(self.limit, self.work)
        return True

    def _ask(self, answers: Callable[[float], bool]) -> None:
        if answers(self.limit):
            self._answers += 1
            self._open = 0

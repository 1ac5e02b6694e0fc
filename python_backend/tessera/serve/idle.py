"""What processes do, and which of them do nothing. Standard library only."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tessera.shared.processes import fields_of

LOOK_S = 1.0
"""The most seconds that count between two looks. A machine or container that is paused as a whole
does nothing, and nobody is to blame: it counts as one look, however long it takes."""

_LITTLE_S = 0.2
"""Seconds of a CPU that its threads may take for looking whether there is something to do."""
_LITTLE_BYTES = 1 << 16
_BY_CALLS, _FROM_STORAGE = "rchar:", "read_bytes:"
"""Lines of `/proc/PID/io`. What is mapped into memory comes from storage, and not by calls."""


@dataclass(frozen=True)
class Work:
    """What a process had done at a time (seconds of the monotonic clock).

    Attributes:
        cpu_seconds: of all its threads, and of its children.
        bytes_read: by calls, and from storage: weights may be mapped into memory.
    """

    at: float
    cpu_seconds: float
    bytes_read: int

    def is_more_than(self, before: Work) -> bool:
        """Whether it has done something since, beside looking whether there is something to do."""
        return (
            self.cpu_seconds - before.cpu_seconds > _LITTLE_S
            or self.bytes_read - before.bytes_read > _LITTLE_BYTES
        )


def work_of(process: int) -> Work | None:
    """What a process and those that it has started have done since its beginning; `None` if it has
    ended.
    """
    return _work(process, (_BY_CALLS, _FROM_STORAGE), _descendants(process))


def own_work_of(process: int) -> Work | None:
    """What a process itself has done, without those that it has started and that run, and without
    what calls have read: a tritonserver reads `/proc` every two seconds, whatever happens.
    """
    return _work(process, (_FROM_STORAGE,), ())


def _work(process: int, read: tuple[str, ...], others: Iterable[int]) -> Work | None:
    try:
        lines = Path(f"/proc/{process}/io").read_text().splitlines()
        ticks = _ticks(process)
    except OSError:
        return None
    for other in others:
        with contextlib.suppress(OSError):  # it may end meanwhile
            ticks += _ticks(other)
    read_bytes = sum(int(line.split()[1]) for line in lines if line.startswith(read))
    return Work(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), read_bytes)


def is_stopped(process: int) -> bool:
    """Whether a signal has stopped a process."""
    with contextlib.suppress(OSError):
        return fields_of(process)[0] == "T"
    return False


def _ticks(process: int) -> int:
    """Of all its threads, in the kernel too, and of children that have ended."""
    return sum(int(field) for field in fields_of(process)[11:15])


def _descendants(process: int) -> Iterator[int]:
    """Children of a process, their children and so on."""
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                yield child
                yield from _descendants(child)


@dataclass
class _Look:
    """The latest look at a process.

    Attributes:
        task: what it had to do.
        work: what it had done when it last did something.
        at: when this look was.
        idle_s: for how long it has done nothing since, as far as it was looked.
    """

    task: Hashable
    work: Work
    at: float
    idle_s: float = 0.0


@dataclass
class Idle:
    """Finds processes that do nothing.

    Attributes:
        limit: seconds after which a process is found.
        work: see `work_of`.
    """

    limit: float
    work: Callable[[int], Work | None] = work_of
    _looks: dict[int, _Look] = field(default_factory=dict)

    def among(self, tasks: Mapping[int, Hashable]) -> set[int]:
        """Those that have done nothing for the limit, since it was first looked at them.

        Args:
            tasks: process id -> what it has to do. It counts from anew when that changes, or when a
                process has been missing.
        """
        self._looks = {pid: look for pid, look in self._looks.items() if pid in tasks}
        return {pid for pid, task in tasks.items() if self._idle_s(pid, task) > self.limit}

    def _idle_s(self, pid: int, task: Hashable) -> float:
        now, last = self.work(pid), self._looks.get(pid)
        if now is None:
            return 0.0
        if last is None or last.task != task or now.is_more_than(last.work):
            self._looks[pid] = _Look(task, now, now.at)
            return 0.0
        last.idle_s += min(now.at - last.at, LOOK_S)
        last.at = now.at
        return last.idle_s

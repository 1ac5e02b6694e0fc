"""What the board's rows hold, and which of them stand for jobs that have been lost. Knows arrays,
nothing of files or locks.

Triton drops a request in a queue, or together with a process that dies, and tells nobody. So a row
says who works on its job, and by when the job has to be done.
"""

from __future__ import annotations

import contextlib
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.shared.processes import fields_of

ABANDONED_S = 900.0
"""A job that a process works on, but has not touched for this long, is lost."""

LOST_S = 30.0
"""A job that waits for a model longer than this, while that model has nothing to do, is lost."""

NEXT_S = 5.0
"""A model that had a job so lately may be about to take its next one."""


class Phase(IntEnum):
    """Phase of a job."""

    QUEUED = 1
    DENOISING = 2
    DECODING = 3
    DONE = 4
    FAILED = 5
    CANCELLED = 6

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self >= Phase.DONE


ROW = np.dtype(
    [
        ("job_id", "S64"),
        ("ticket", "i8"),
        ("phase", "i8"),
        ("cancel", "i8"),
        ("step", "i8"),
        ("total", "i8"),
        ("end", "i8"),
        ("process", "i8"),
        ("asked", "i8"),
        ("priority", "i8"),
        ("kind", "i8"),
        ("held", "i8"),
        ("opened", "f8"),
        ("touched", "f8"),
        ("watched", "f8"),
        ("step_s", "f8"),
        ("decoding", "f8"),
        ("deadline", "f8"),
        ("seen", "f8"),
    ]
)
"""`process` works on the job; it is 0 while the job waits in a queue of Triton's. It stays when the
job ends, until that process leaves the job. `asked` is 1 when that process has asked `denoise`.
`deadline` is 0 if there is none. `decoding` is when that phase began. `seen` is when a process last
said that it still has the job, which waits for its turn or for something else, or that it leaves
it. `end` is the final phase once there is one: late progress, of a process that had been stopped,
writes to `phase` only. `kind` is the place of its `metrics.Kind`. `held` are bytes of host memory
that the request takes until it is answered.

Times are of `time.monotonic()`: it is the same in all processes of a machine, and nobody sets it.
"""

Rows = npt.NDArray[Any]
Marks = npt.NDArray[np.bool_]
"""One for each row."""


def ended(rows: Rows) -> Marks:
    """Rows without a job, or whose job has ended."""
    return (rows["end"] > 0) | (rows["ticket"] == 0)


def lost(rows: Rows, now: float, *, slots: int, previewing: bool = False) -> Marks:
    """Rows of jobs that will never end by themselves: their time is over, their process has ended,
    or the model in whose queue they were has nothing to do.

    Args:
        rows: all of the board.
        now: `time.monotonic()`.
        slots: jobs that may be denoised at a time; there are more processes of `render`.
        previewing: whether `decode` is at a preview, or was lately.
    """
    live = ~ended(rows)
    processes = rows["process"].copy()  # others write to it meanwhile
    busy = _living(processes)  # jobs that have ended, too: their processes have not yet
    waiting = live & (processes == 0)
    idle_s = now - np.maximum(rows["touched"], rows["seen"])
    found = live & (rows["deadline"] > 0) & (rows["deadline"] < now)
    found |= live & ~waiting & (~busy | (idle_s > ABANDONED_S))
    queueing, decoding = (rows["phase"] == phase for phase in (Phase.QUEUED, Phase.DECODING))
    lately = (rows["ticket"] > 0) & (idle_s < NEXT_S)
    gone = np.zeros_like(live)
    if slots and int(((busy & ~decoding) | (lately & ~(waiting & queueing))).sum()) < slots:
        gone |= queueing
    if not previewing and not (decoding & (busy | (lately & ~waiting))).any():
        gone |= decoding
    return found | (waiting & gone & (idle_s > LOST_S))


def doubtful(rows: Rows, now: float, taken: Rows) -> Marks:
    """Rows of jobs that may never be closed: cancelled ones that `denoise` does not have, and those
    that younger ones of their priority have overtaken in the queue of `render`, long ago.

    That queue may have dropped the latter. Or their callers gave Triton another `priority` than
    `job_priority`, and they come yet. So they are not ended.

    Args:
        rows: all of the board.
        now: `time.monotonic()`.
        taken: by priority, the latest ticket that `render` has taken out of its queue.
    """
    queueing = rows["phase"] == Phase.QUEUED
    given_up = (queueing | (rows["phase"] == Phase.DECODING)) & (rows["cancel"] == 1)
    overtaken = queueing & (rows["process"] == 0) & (rows["ticket"] < taken[rows["priority"]])
    overtaken &= now - rows["touched"] > LOST_S
    return (given_up | overtaken) & ~ended(rows)


def in_queue(live: Rows) -> Rows:
    """Of those, the ones that wait for a slot."""
    return live[(live["phase"] == Phase.QUEUED) & (live["cancel"] == 0)]


def phase_of(row: np.void) -> Phase:
    """Of a row's job."""
    return Phase(int(row["end"]) or int(row["phase"]))


def _living(processes: npt.NDArray[Any]) -> Marks:
    """Which of them run; 0 is none."""
    living = [each for each in np.unique(processes[processes > 0]).tolist() if _lives(each)]
    return np.isin(processes, living)


def _lives(process: int) -> bool:
    """Whether it runs; one whose parent has not taken note of its end does not."""
    with contextlib.suppress(OSError):
        return fields_of(process)[0] not in "ZX"
    return False

"""When a job will be done, from the rows of the board. Pure functions.

What is left of a job is its steps times the time that its latest ones took, and before that the
wait for a slot: those ahead take the slots in the order in which they become free, by priority and
arrival. `denoise` may give them in another order (`denoise.slots`).
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

WEIGHT = 0.3
"""Of the newest measurement in a moving average."""

Rows = npt.NDArray[Any]


def average(old: float, new: float) -> float:
    """A moving average that begins with the first measurement."""
    return new if not old else (1 - WEIGHT) * old + WEIGHT * new


def in_order(rows: Rows) -> Rows:
    """Rows of jobs by priority, and by arrival among equals."""
    return np.sort(rows, order=("priority", "ticket"))


def place_in_queue(queued: Rows, row: np.void) -> int:
    """Place of a job among those that wait; 1 is the next."""
    return 1 + len(_ahead(queued, row))


def seconds_left(
    row: np.void, running: Rows, queued: Rows, *, slots: int, step_s: float, decode_s: float
) -> float | None:
    """Seconds until a job that has not ended is done; `None` as long as nothing was measured.

    Args:
        row: the job's.
        running: rows of the jobs that are denoised, the job's own included.
        queued: rows of those that wait for a slot, in any order.
        slots: how many jobs are denoised at a time.
        step_s: what a step of any job took lately.
        decode_s: what comes behind a job's last step.
    """
    steps = int(row["total"]) - int(row["step"])
    seconds = steps * _step_s(row, step_s)
    if not slots or (steps and not seconds):
        return None
    if row["ticket"] in queued["ticket"]:
        seconds += wait(running, _ahead(queued, row), slots, step_s)
    elif len(earlier := _ahead(running, row)) >= slots and steps:  # it has lost its slot
        seconds += wait(earlier, queued[:0], slots, step_s)
    return float(seconds + decode_s)


def _step_s(row: np.void, step_s: float) -> float:
    return float(row["step_s"]) or step_s


def wait(running: Rows, ahead: Rows, slots: int, step_s: float) -> float:
    """Seconds until a job has a slot that has those `ahead` of it."""
    begun = in_order(running)
    free_at = [_left_s(job, step_s) for job in begun[:slots]]  # others have lost their slot
    free_at += [0.0] * (slots - len(free_at))
    heapq.heapify(free_at)
    for job in (*begun[slots:], *in_order(ahead)):
        heapq.heapreplace(free_at, free_at[0] + _left_s(job, step_s))
    return free_at[0]


def _left_s(job: np.void, step_s: float) -> float:
    return float(job["total"] - job["step"]) * _step_s(job, step_s)


def _ahead(rows: Rows, row: np.void) -> Rows:
    """Those of some jobs that come before this one, by priority and arrival."""
    urgent = rows["priority"] < row["priority"]
    equal = (rows["priority"] == row["priority"]) & (rows["ticket"] < row["ticket"])
    return rows[urgent | equal]

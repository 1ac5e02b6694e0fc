"""The board: shared memory in which all model processes of one server see jobs.

Triton does not tell an ensemble's members that a client has gone. It does not tell a client the
progress of its request either. So each request has a row here. `encode` opens it. `denoise` writes
progress and reads at every tick whether to cancel, and whether somebody watches. `decode` closes
it. The `jobs` model reads, cancels and watches. Rows of finished jobs stay until their slot is
needed. Whoever looks at the board closes the rows of jobs that have been lost (see `rows`).

A row is identified by (slot, ticket). The ticket changes when another job gets the slot. Opening,
closing and cancelling hold a file lock. Progress needs no lock, since one process at a time writes
it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tessera.contract import JobStatus
from tessera.contract.limits import DEFAULT_PRIORITY, PRIORITIES
from tessera.errors import Cancelled, InvalidInput, TimedOut, Unavailable, UnknownJob
from tessera.plan import Plan
from tessera.shared.at_work import AtWork
from tessera.shared.estimate import average, in_order, place_in_queue, seconds_left, wait
from tessera.shared.header import HEADER
from tessera.shared.metrics import Kind
from tessera.shared.own_files import open_own
from tessera.shared.rows import ROW, Marks, Phase, Rows, doubtful, ended, in_queue, phase_of

CAPACITY = 4096
ARRIVES_WITHIN_S = 5.0
WATCHED_S = 3.0
"""A job is watched for so long after the last request for a preview."""

_SIZE = HEADER.itemsize + CAPACITY * ROW.itemsize


class Board(AtWork):
    """One server's board. Every process opens a `Board` on the same file.

    Args:
        path: of the file.
        patience: seconds to wait for the lock, which a process that is stopped may hold; then
            whatever needs it raises `Unavailable`.
    """

    def __init__(self, path: Path, *, patience: float = math.inf) -> None:
        self._file, self._patience = open_own(path, os.O_RDWR | os.O_CREAT), patience
        weakref.finalize(self, os.close, self._file)
        self._threads = threading.Lock()
        with self._locked():
            if os.fstat(self._file).st_size < _SIZE:
                os.posix_fallocate(self._file, 0, _SIZE)  # else a write to a full disk is a SIGBUS
        self._memory = mmap.mmap(self._file, _SIZE)
        self._header = np.ndarray((), HEADER, self._memory)
        self._waiting = True
        self._newest = 0
        self._swept = 0.0
        self._rows: Rows = np.ndarray((CAPACITY,), ROW, self._memory, HEADER.itemsize)

    def open(
        self,
        job_id: str,
        total: int,
        *,
        deadline: float = 0.0,
        priority: int = DEFAULT_PRIORITY,
        kind: Kind = Kind.GENERATE,
        held: int = 0,
    ) -> tuple[int, int]:
        """Put a job on the board, at which this process works; returns its (slot, ticket).

        Args:
            job_id: the job's id.
            total: its number of steps.
            deadline: `time.monotonic()` after which nobody waits for it; 0 if somebody always does.
            priority: 1 (first) to `PRIORITIES`.
            kind: what it makes.
            held: bytes of host memory that its request takes until it is answered.

        Raises:
            InvalidInput: a job of that id is running.
            Unavailable: every row belongs to a running job, or the server is being stopped.
        """
        self.check_serving()
        with self._locked():
            self._close_lost()
            slot = self._slot_for(job_id)
            ticket = int(self._header["ticket"]) + 1
            row, now = np.zeros((), ROW), time.monotonic()
            row["job_id"], row["ticket"], row["total"] = job_id.encode(), ticket, total
            row["phase"], row["process"] = Phase.QUEUED, os.getpid()
            row["opened"] = row["touched"] = now
            row["deadline"], row["priority"] = deadline, priority
            row["kind"], row["held"] = tuple(Kind).index(kind), held
            self._rows[slot] = row
            self._header["ticket"] = ticket  # last: when it changes, `waiting` reads the rows
        return slot, ticket

    def check_room(self, most: int, priority: int = DEFAULT_PRIORITY) -> None:
        """See whether one more job may wait for a slot.

        Args:
            most: how many may.
            priority: of the job.

        Raises:
            Unavailable: as many wait already; the sentence says how many and for how long.
        """
        with self._locked():
            self._close_lost()
        live, slots = self._live, int(self._header["slots"])
        waiting, running = in_queue(live), live[live["phase"] == Phase.DENOISING]
        if not slots or len(waiting) - max(0, slots - len(running)) < most:
            return
        ahead = waiting[waiting["priority"] <= priority]
        seconds = wait(running, ahead, slots, float(self._header["step_s"]))
        raise Unavailable(
            f"the queue is full: {len(waiting)} jobs wait, and one more would begin in about "
            f"{seconds:.0f} s; try again later"
        )

    def check_memory(self, held: int, most: int) -> None:
        """See whether one more request fits into memory beside those that have not ended. Alone, it
        always does.

        Args:
            held: bytes that it takes until it is answered.
            most: bytes that all may take together.

        Raises:
            Unavailable: not before others have ended.
        """
        with self._locked():
            self._close_lost()
        others = int(self._live["held"].sum())
        if others and others + held > most:
            raise Unavailable(
                f"requests under way hold {others / 1e9:.3g} GB of memory; with "
                f"{held / 1e9:.3g} GB for this one it would be more than the {most / 1e9:.3g} GB "
                "that they may have together; try again later"
            )

    def take(self, plan: Plan, *, queued: bool = False) -> None:
        """Say that this process works at a job now; `queued` if it was in the queue of `render`.

        Raises:
            TesseraError: it is not to go on, see `check_wanted`.
        """
        self.check_wanted(plan)
        row = self._rows[plan.slot]
        row["process"], row["asked"], row["touched"] = os.getpid(), 0, time.monotonic()
        if queued:
            taken = self._header["taken"]
            taken[plan.priority] = max(plan.ticket, int(taken[plan.priority]))

    def holds(self, slot: int, ticket: int) -> bool:
        """Whether the row still belongs to this job and the job has not ended."""
        row = self._rows[slot] if 0 <= slot < CAPACITY else None
        return row is not None and int(row["ticket"]) == ticket and not row["end"]

    def cancelled(self, slot: int, ticket: int) -> bool:
        """Whether cancellation of this job was requested."""
        return int(self._rows[slot]["ticket"]) == ticket and bool(self._rows[slot]["cancel"])

    def check_wanted(self, plan: Plan, done: str = "") -> None:
        """See whether a job is to go on.

        Args:
            plan: of the job.
            done: how far it is, for the error.

        Raises:
            Cancelled: it was cancelled.
            TimedOut: its deadline is over.
            Unavailable: it has ended, or was given up.
        """
        if self.cancelled(plan.slot, plan.ticket):
            raise Cancelled(f"job {plan.job_id} was cancelled{done}")
        if 0 < plan.deadline < time.monotonic():
            raise TimedOut(f"the time of job {plan.job_id} was over{done}")
        if not self.holds(plan.slot, plan.ticket):
            raise Unavailable(f"job {plan.job_id} is not on the board; send the request again")

    def watched(self, slot: int, ticket: int) -> bool:
        """Whether somebody has lately asked for this job's preview."""
        row = self._rows[slot]
        return float(row["watched"]) > time.monotonic() and int(row["ticket"]) == ticket

    def watch(self, job_id: str) -> tuple[int, JobStatus]:
        """Have a job's latents written for a while (see `previews`); its ticket and status.

        Raises:
            UnknownJob: no row has this id.
        """
        with self._locked():
            row = self._rows[self._find(job_id)]
            row["watched"] = time.monotonic() + WATCHED_S
            return int(row["ticket"]), self._status(row)

    def progress(self, slot: int, ticket: int, phase: Phase, step: int | None = None) -> None:
        """Write a job's progress. Does nothing within a step, or if the job has ended."""
        row, now = self._rows[slot], time.monotonic()
        if not self.holds(slot, ticket) or (step == row["step"] and phase == row["phase"]):
            return
        if step is not None:
            steps = step - int(row["step"])
            if steps > 0 and row["phase"] == Phase.DENOISING:
                row["step_s"] = average(float(row["step_s"]), (now - float(row["touched"])) / steps)
                self._header["step_s"] = row["step_s"]
            row["step"] = step
        if phase == Phase.DECODING and row["phase"] != phase:
            row["decoding"] = now
        row["touched"] = now
        row["phase"] = phase

    def cancel(self, job_id: str) -> JobStatus:
        """Set a job's cancel flag; returns its status. A job that has ended does not change.

        Raises:
            UnknownJob: no row has this id.
        """
        with self._locked():
            row = self._rows[self._find(job_id)]
            if not row["end"]:
                row["cancel"] = 1
            return self._status(row)

    def cancel_all(self) -> None:
        """Raise the cancel flag of every job that has not ended."""
        with self._locked():
            self._rows["cancel"][~ended(self._rows)] = 1

    def status(self, job_id: str) -> JobStatus:
        """A job's status.

        Raises:
            UnknownJob: no row has this id.
        """
        with self._locked():
            self._close_lost()
            return self._status(self._rows[self._find(job_id)])

    def waiting(self, before: int = PRIORITIES + 1, here: Sequence[int] = ()) -> bool:
        """Whether a job of a priority `before` this one will soon arrive at `denoise`, other than
        those that are `here` already, by ticket.

        A job that has been queued longer than `ARRIVES_WITHIN_S` is not expected any more.
        """
        newest = int(self._header["ticket"])
        if not self._waiting and newest == self._newest:
            return False  # no job was waiting, and none has been opened since
        self._newest = newest
        arriving = self._rows[self._recent(Phase.QUEUED) & ~np.isin(self._rows["ticket"], here)]
        self._waiting = bool(len(arriving))
        return bool((arriving["priority"] < before).any())

    def denoising(self) -> bool:
        """Whether a job is being denoised."""
        return bool(self._recent(Phase.DENOISING).any())

    def running(self) -> int:
        """How many jobs have not ended, without doubtful ones, which may never be closed."""
        if self._sweep_due(time.monotonic()):
            with self._locked():
                self._close_lost()
        return len(self._live)

    def occupancy(self) -> tuple[int, int, int]:
        """How many jobs are at work, how many wait for a slot, and how many slots there are."""
        running, waiting = self.running(), len(in_queue(self._live))
        return max(0, running - waiting), waiting, int(self._header["slots"])

    def queued(self) -> list[tuple[str, int]]:
        """Id and number of steps of every job that waits, in order."""
        rows = in_order(in_queue(self._live))
        return [(bytes(row["job_id"]).decode(), int(row["total"])) for row in rows]

    def _find(self, job_id: str) -> int:
        matches = np.flatnonzero(
            (self._rows["job_id"] == job_id.encode()) & (self._rows["ticket"] > 0)
        )
        if not len(matches):
            raise UnknownJob(job_id)
        return int(matches[0])

    def _slot_for(self, job_id: str) -> int:
        """The slot for a new job: the ended or doubtful row with the same id, or else the ended row
        that was touched longest ago.
        """
        reusable, doubted = ended(self._rows), self._doubted
        with contextlib.suppress(UnknownJob):
            slot = self._find(job_id)
            if not (reusable | doubted)[slot]:
                raise InvalidInput("JOB_ID", job_id, "an id that no running job has")
            return slot
        if not reusable.any():
            reusable = doubted
        if not reusable.any():
            raise Unavailable(f"{CAPACITY} jobs are running; try again later")
        return int(np.where(reusable, self._rows["touched"], np.inf).argmin())

    @property
    def _doubted(self) -> Marks:
        return doubtful(self._rows, time.monotonic(), self._header["taken"])

    @property
    def _live(self) -> Rows:
        """Rows of jobs that have not ended, without doubtful ones."""
        return self._rows[~ended(self._rows) & ~self._doubted]

    def _recent(self, phase: Phase) -> Marks:
        """Rows of jobs in this phase that have been touched lately."""
        rows = self._rows
        recent = (rows["phase"] == phase) & (rows["touched"] > time.monotonic() - ARRIVES_WITHIN_S)
        return recent & ~ended(rows)

    def _status(self, row: np.void) -> JobStatus:
        phase = phase_of(row)
        end = float(row["touched"]) if phase.final else time.monotonic()
        live = self._live
        waiting = in_queue(live)
        waits = phase == Phase.QUEUED and not row["cancel"]
        left = seconds_left(
            row,
            live[live["phase"] == Phase.DENOISING],
            waiting,
            slots=int(self._header["slots"]),
            step_s=float(self._header["step_s"]),
            decode_s=float(self._header["decode_s"]),
        )
        return JobStatus(
            job_id=bytes(row["job_id"]).decode(),
            phase=phase.name.lower(),
            step=int(row["step"]),
            total=int(row["total"]),
            cancelled=bool(row["cancel"]),
            seconds=round(end - float(row["opened"]), 3),
            place=place_in_queue(waiting, row) if waits else None,
            seconds_left=None if phase.final or left is None else round(left, 3),
        )

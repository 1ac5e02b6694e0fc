"""The board: shared memory in which all model processes of one server see jobs.

Triton does not tell an ensemble's members that a client has gone. It does not tell a client the
progress of its request either. So each request has a row here. `encode` opens it. `denoise` writes
progress and reads the cancel flag at every tick. `decode` closes it. The `jobs` model reads and
cancels. Rows of finished jobs stay until their slot is needed.

A row is identified by (slot, ticket). The ticket changes when another job gets the slot. Opening,
closing and cancelling hold a file lock. Progress needs no lock, since one process at a time writes
it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.contract import JobStatus
from tessera.errors import InvalidInput, Unavailable, UnknownJob
from tessera.shared.processes import SHARED, lives, namespace
from tessera.shared.settings import BOARD_PREFIX

CAPACITY = 4096
ARRIVES_WITHIN_S = 5.0
ABANDONED_S = 900.0
"""A running job that no process has touched for this long is lost: its row may be reused."""


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


CACHE_FIELDS = ("hits", "misses", "evictions", "bytes", "entries")
"""Counters of the recorded activations in `denoise`'s memory."""

_HEADER = np.dtype(
    [(name, "i8") for name in ("ticket", "tick", "stopping")] + [(n, "i8") for n in CACHE_FIELDS]
)
_ROW = np.dtype(
    [
        ("job_id", "S64"),
        ("ticket", "i8"),
        ("phase", "i8"),
        ("cancel", "i8"),
        ("step", "i8"),
        ("total", "i8"),
        ("opened", "f8"),
        ("touched", "f8"),
    ]
)
Rows = npt.NDArray[Any]
_SIZE = _HEADER.itemsize + CAPACITY * _ROW.itemsize


def sweep_boards() -> None:
    """Remove the boards of servers that have ended, with the files next to them.

    `tessera-serve` removes its own board.
    """
    for path in SHARED.glob(f"{BOARD_PREFIX}{namespace()}-*"):
        named = re.fullmatch(rf"{BOARD_PREFIX}\d+-(\d+)-(\d+)(\..*)?", path.name)
        if named and not lives(f"{named[1]}:{named[2]}"):
            with contextlib.suppress(OSError):  # another user's
                path.unlink()


class Board:
    """One server's board. Every process opens a `Board` on the same file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._locked():
            if os.fstat(self._file).st_size < _SIZE:
                os.posix_fallocate(self._file, 0, _SIZE)  # else a write to a full disk is a SIGBUS
        self._memory = mmap.mmap(self._file, _SIZE)
        self._header: Rows = np.ndarray((), _HEADER, self._memory)
        self._waiting = True
        self._newest = 0
        self._rows: Rows = np.ndarray((CAPACITY,), _ROW, self._memory, _HEADER.itemsize)

    @property
    def tick(self) -> int:
        """Number of the latest tick that `denoise` began."""
        return int(self._header["tick"])

    def begin_tick(self) -> int:
        """Count a tick and return its number. Only `denoise` calls it."""
        self._header["tick"] += 1
        return self.tick

    @property
    def cache(self) -> dict[str, int]:
        """The latest `CACHE_FIELDS` that `denoise` published."""
        return {name: int(self._header[name]) for name in CACHE_FIELDS}

    def tell_cache(self, **counters: int) -> None:
        """Publish `CACHE_FIELDS`. Only `denoise` calls it."""
        for name in CACHE_FIELDS:
            self._header[name] = counters[name]

    def open(self, job_id: str, total: int) -> tuple[int, int]:
        """Put a job on the board; returns its (slot, ticket).

        Args:
            job_id: the job's id.
            total: its number of steps.

        Raises:
            InvalidInput: a job of that id is running.
            Unavailable: every row belongs to a running job, or the server is being stopped.
        """
        self.check_serving()
        with self._locked():
            slot = self._slot_for(job_id)
            ticket = int(self._header["ticket"]) + 1
            now = time.time()
            self._rows[slot] = (job_id.encode(), ticket, Phase.QUEUED, 0, 0, total, now, now)
            self._header["ticket"] = ticket  # last: when it changes, `waiting` reads the rows
        return slot, ticket

    def holds(self, slot: int, ticket: int) -> bool:
        """Whether the row still belongs to this job and the job has not ended."""
        row = self._rows[slot] if 0 <= slot < CAPACITY else None
        return (
            row is not None and int(row["ticket"]) == ticket and not Phase(int(row["phase"])).final
        )

    def cancelled(self, slot: int, ticket: int) -> bool:
        """Whether cancellation of this job was requested."""
        return int(self._rows[slot]["ticket"]) == ticket and bool(self._rows[slot]["cancel"])

    def progress(self, slot: int, ticket: int, phase: Phase, step: int | None = None) -> None:
        """Write a job's progress. Does nothing if the row now belongs to another job."""
        row = self._rows[slot]
        if int(row["ticket"]) != ticket:
            return
        if step is not None:
            row["step"] = step
        row["touched"] = time.time()
        row["phase"] = phase

    def close(self, slot: int, ticket: int, phase: Phase) -> None:
        """End a job. Later calls do not change its final phase."""
        with self._locked():
            if self.holds(slot, ticket):
                self.progress(slot, ticket, phase)

    def cancel(self, job_id: str) -> JobStatus:
        """Set a job's cancel flag; returns its status. A job that has ended does not change.

        Raises:
            UnknownJob: no row has this id.
        """
        with self._locked():
            row = self._rows[self._find(job_id)]
            if not Phase(int(row["phase"])).final:
                row["cancel"] = 1
            return _status(row)

    def refuse(self) -> None:
        """Take no more jobs: the server is being stopped."""
        self._header["stopping"] = 1

    @property
    def refusals(self) -> int:
        """About how many jobs have been refused since; several processes count without a lock."""
        return max(0, int(self._header["stopping"]) - 1)

    def check_serving(self) -> None:
        """See whether jobs are taken.

        Raises:
            Unavailable: the server is being stopped.
        """
        if self._header["stopping"]:
            self._header["stopping"] += 1
            raise Unavailable("the server is being stopped; try again later")

    def cancel_all(self) -> None:
        """Raise the cancel flag of every job that has not ended."""
        with self._locked():
            self._rows["cancel"][self._rows["phase"] < Phase.DONE] = 1

    def status(self, job_id: str) -> JobStatus:
        """A job's status.

        Raises:
            UnknownJob: no row has this id.
        """
        with self._locked():
            return _status(self._rows[self._find(job_id)])

    def waiting(self) -> bool:
        """Whether a job will soon arrive at `denoise`.

        A job that has been queued longer than `ARRIVES_WITHIN_S` is not expected any more.
        """
        newest = int(self._header["ticket"])
        if not self._waiting and newest == self._newest:
            return False  # no job was waiting, and none has been opened since
        self._newest = newest
        recent = self._rows["touched"] > time.time() - ARRIVES_WITHIN_S
        self._waiting = bool((recent & (self._rows["phase"] == Phase.QUEUED)).any())
        return self._waiting

    def denoising(self) -> bool:
        """Whether a job is being denoised."""
        recent = self._rows["touched"] > time.time() - ARRIVES_WITHIN_S
        return bool((recent & (self._rows["phase"] == Phase.DENOISING)).any())

    def running(self) -> int:
        """How many jobs have not ended, without given-up ones, which may never be closed."""
        return int((~self._reusable(time.time()) & ~self._given_up()).sum())

    def _find(self, job_id: str) -> int:
        matches = np.flatnonzero(
            (self._rows["job_id"] == job_id.encode()) & (self._rows["ticket"] > 0)
        )
        if not len(matches):
            raise UnknownJob(job_id)
        return int(matches[0])

    def _slot_for(self, job_id: str) -> int:
        """The slot for a new job: the ended or given-up row with the same id, or else the ended row
        that was touched longest ago.
        """
        with contextlib.suppress(UnknownJob):
            slot = self._find(job_id)
            if not (self._reusable(time.time()) | self._given_up())[slot]:
                raise InvalidInput("JOB_ID", job_id, "an id that no running job has")
            return slot
        reusable = self._reusable(time.time())
        if not reusable.any():
            reusable = self._given_up()
        if not reusable.any():
            raise Unavailable(f"{CAPACITY} jobs are running; try again later")
        return int(np.where(reusable, self._rows["touched"], np.inf).argmin())

    def _reusable(self, now: float) -> npt.NDArray[np.bool_]:
        rows = self._rows
        ended = (rows["phase"] >= Phase.DONE) | (rows["ticket"] == 0)
        return ended | (now - rows["touched"] > ABANDONED_S)

    def _given_up(self) -> npt.NDArray[np.bool_]:
        """Rows of cancelled jobs that `denoise` does not have, which may never be closed."""
        phase = self._rows["phase"]
        elsewhere = (phase == Phase.QUEUED) | (phase == Phase.DECODING)
        return elsewhere & (self._rows["cancel"] == 1)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _status(row: np.void) -> JobStatus:
    phase = Phase(int(row["phase"]))
    end = float(row["touched"]) if phase.final else time.time()
    return JobStatus(
        job_id=bytes(row["job_id"]).decode(),
        phase=phase.name.lower(),
        step=int(row["step"]),
        total=int(row["total"]),
        cancelled=bool(row["cancel"]),
        seconds=round(end - float(row["opened"]), 3),
    )

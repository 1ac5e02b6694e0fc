"""How jobs end, and how many have ended in which way: a part of the board.

Counts are in the head of the board, not in a process: a job may be lost while no process of ours
works at it. Whoever ends a job counts it, once.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from tessera.errors import Unavailable
from tessera.shared.estimate import average
from tessera.shared.header import Header
from tessera.shared.metrics import Kind, Outcome
from tessera.shared.processes import WARM_UP, identity
from tessera.shared.rows import NEXT_S, Phase, Rows, ended, lost

SWEEP_S = 1.0
"""A process looks for lost jobs at most this often."""

_TRY_S = 0.01
_KEPT = "another process keeps the lock of the job board"

_KINDS, _OUTCOMES = tuple(Kind), tuple(Outcome)
_OF_PHASE = {
    Phase.DONE: Outcome.DONE,
    Phase.FAILED: Outcome.FAILED,
    Phase.CANCELLED: Outcome.CANCELLED,
}


class Ends(Header):
    """The ends of a server's jobs; a subclass sets the file and rows, and says who `holds` one.

    Attributes:
        on_lost: told the row of each job that this process finds lost.
    """

    _file: int
    _threads: threading.Lock
    _rows: Rows
    _swept: float
    _patience: float = math.inf
    on_lost: Callable[[np.void, Outcome], None] = staticmethod(lambda row, outcome: None)

    def holds(self, slot: int, ticket: int) -> bool:
        """See `Board.holds`."""
        raise NotImplementedError

    def close(self, slot: int, ticket: int, phase: Phase, outcome: Outcome | None = None) -> bool:
        """End a job, at which this process does not work any more; `outcome` is the phase's unless
        given. Later calls do not change the end. Returns whether this one has ended it.
        """
        with self._locked():
            self._leave(slot, ticket)
            if not self.holds(slot, ticket):
                return False
            row, now = self._rows[slot], time.monotonic()
            if phase == Phase.DONE and row["phase"] == Phase.DECODING:
                took = now - float(row["decoding"])
                self._header["decode_s"] = average(float(self._header["decode_s"]), took)
            row["touched"], row["end"] = now, phase
            self._count_job(row, outcome or _OF_PHASE[phase])
            return True

    def fail(self, slot: int, ticket: int, error: Exception) -> Outcome | None:
        """End a job by an error; how, or `None` if it had ended before."""
        outcome = Outcome.of(error)
        if outcome is Outcome.UNAVAILABLE and 0 < self._rows[slot]["deadline"] < time.monotonic():
            outcome = Outcome.TIMED_OUT
        phase = Phase.CANCELLED if outcome is Outcome.CANCELLED else Phase.FAILED
        return outcome if self.close(slot, ticket, phase, outcome) else None

    def count_refused(self, kind: Kind, error: Exception) -> None:
        """Count a request that an error has kept from becoming a job."""
        with self._locked():
            self._count(kind, Outcome.of(error))

    def new_ends(self) -> tuple[dict[tuple[Kind, Outcome], int], int]:
        """Requests that have ended since any process has asked, by kind and outcome, and the steps
        that cancelled ones of them did not run.
        """
        with self._locked():
            self._close_lost()
            return self._new_ends()

    def _sweep_due(self, now: float) -> bool:
        return abs(now - self._swept) > SWEEP_S

    def _close_lost(self) -> None:
        """Close the rows of lost jobs, unless this process has looked just now."""
        now, header = time.monotonic(), self._header
        if not self._sweep_due(now):
            return
        found = lost(
            self._rows, now, slots=int(header["most_slots"]), previewing=self._decodes_preview(now)
        )
        self._rows["touched"][found] = now
        self._rows["end"][found] = Phase.FAILED
        for slot in np.flatnonzero(found):
            row = self._rows[slot]
            outcome = Outcome.TIMED_OUT if 0 < row["deadline"] < now else Outcome.FAILED
            self._count_job(row, outcome)
            self.on_lost(row, outcome)
        self._forget_processes()
        self._swept = now

    def _decodes_preview(self, now: float) -> bool:
        """Whether `decode` is at a preview, or was lately."""
        header = self._header
        if header["previewing"] and not identity(int(header["previewing"])):
            header["previewing"] = 0
        return bool(header["previewing"]) or now - float(header["previewed"]) < NEXT_S

    def _forget_processes(self) -> None:
        """Take processes that have ended out of the rows of jobs that have ended, too: else a later
        process with the same number would seem to work at them.
        """
        for slot in np.flatnonzero(ended(self._rows) & (self._rows["process"] > 0)):
            row = self._rows[slot]
            if not identity(int(row["process"])):
                row["process"] = 0

    def _leave(self, slot: int, ticket: int) -> None:
        """Note that this process does not work at a job any more, whether the job has ended or not;
        does nothing if it did not.
        """
        row = self._rows[slot] if 0 <= slot < len(self._rows) else None
        if row is not None and row["ticket"] == ticket and row["process"] == os.getpid():
            row["seen"] = time.monotonic()
            row["process"] = row["asked"] = 0

    def _count(self, kind: Kind, outcome: Outcome, saved: int = 0) -> None:
        """Count an end, under the lock."""
        self._header["ended"][_KINDS.index(kind), _OUTCOMES.index(outcome)] += 1
        self._header["saved"] += saved

    def _count_job(self, row: np.void, outcome: Outcome) -> None:
        """Count the end of a row's job, under the lock; not of one that nobody asked for."""
        if not bytes(row["job_id"]).startswith(WARM_UP.encode()):
            stopped = outcome in (Outcome.CANCELLED, Outcome.TIMED_OUT)
            saved = int(row["total"] - row["step"]) if stopped else 0
            self._count(_KINDS[int(row["kind"])], outcome, saved)

    def _new_ends(self) -> tuple[dict[tuple[Kind, Outcome], int], int]:
        """What has been counted since the last call, under the lock."""
        header = self._header
        new, saved = header["ended"] - header["told"], int(header["saved"] - header["saved_told"])
        header["told"], header["saved_told"] = header["ended"], header["saved"]
        counts = {
            (k, o): int(n)
            for k, row in zip(_KINDS, new, strict=True)
            for o, n in zip(_OUTCOMES, row, strict=True)
        }
        return counts, saved

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep all others out: threads that share this object by `_threads`, since the lock of the
        file is the object's, and everybody else by that. May not be nested.

        Raises:
            Unavailable: others have kept it for longer than `_patience`.
        """
        until = time.monotonic() + self._patience
        forever = math.isinf(self._patience)
        if not self._threads.acquire(timeout=-1 if forever else self._patience):
            raise Unavailable(_KEPT)
        try:
            self._lock(until)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def _lock(self, until: float = math.inf) -> None:
        """Wait for the lock of the file, until a time of `time.monotonic()`.

        Raises:
            Unavailable: another process has kept it for so long.
        """
        if math.isinf(until):
            fcntl.flock(self._file, fcntl.LOCK_EX)
            return
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Unavailable(_KEPT) from None
            time.sleep(_TRY_S)

"""Lets a server finish its requests before it is stopped.

Triton's own way takes long, whatever the server does: it waits up to 30 s for clients to close
their connections, and then a second for each model process, one after the other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.errors import Unavailable

if TYPE_CHECKING:
    from tessera.shared.board import Board

DRAIN_S = 20.0
"""How long requests may go on, unless the operator says otherwise. With `CANCEL_S` and the rest of
a stop this is less than the 30 s that Kubernetes gives."""
CANCEL_S = 3.0
"""How long they may take to answer once they have been cancelled."""
QUIET_S = 0.3
"""How long nothing must have happened: between the steps of a request there are milliseconds."""

REFUSALS_S = 1.0
"""How long no job must have run while others are refused: clients that try again and again keep a
server busy with refusing."""

LOCK_S = 0.5
"""How long to wait for the board's lock: a process that is stopped may hold it."""

_LOOK_S = 0.02
_TELL_S = 1.0
_TCP = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def drain(
    board: Path,
    activity: Path,
    ports: Collection[int],
    hurry: Callable[[], bool],
    say: Callable[[str], None],
    *,
    seconds: float = DRAIN_S,
) -> None:
    """Refuse new jobs and those that wait; return when the others have been answered, have been
    cancelled for taking too long, or when there is a `hurry`.

    Args:
        board: the server's.
        activity: its lock beside the board.
        ports: on which it answers.
        hurry: whether not to wait any longer.
        say: called with what the operator should know.
        seconds: that requests may go on.
    """
    if not board.exists():
        return
    from tessera.shared.activity import Activity

    began = time.monotonic()
    jobs, activities = _opened(board, hurry, seconds), Activity(activity)
    if jobs is None:
        if not hurry():
            say("requests are not waited for: a process keeps the lock of the job board")
        return
    jobs.refuse()
    quiet = jobless = time.monotonic()
    refused_at, refusals = 0.0, 0
    told = cancelled = False
    while not hurry():
        now = time.monotonic()
        if not activities.idle() or unsent(ports):
            quiet = now
        if _some_run(jobs):
            jobless = now
        if jobs.refusals != refusals:
            refused_at, refusals = now, jobs.refusals
        refusing = now - refused_at < REFUSALS_S <= now - jobless
        if now - quiet >= QUIET_S or (refusing and not unsent(ports)):
            return
        if not told and now - began > _TELL_S:
            told = True
            say("stopping when requests have ended; a second signal stops at once")
        if not cancelled and now - began > seconds:
            cancelled = True
            with contextlib.suppress(Unavailable):
                jobs.cancel_all()
            say(f"requests are cancelled: they have not ended within {seconds:g} s")
        if now - began > seconds + CANCEL_S:
            return
        time.sleep(_LOOK_S)


def _opened(board: Path, hurry: Callable[[], bool], seconds: float) -> Board | None:
    """The board, once it can be locked; `None` if that takes longer than so many seconds, or there
    is a `hurry`.
    """
    from tessera.shared.board import Board  # imports numpy

    end = time.monotonic() + seconds
    while not hurry():
        try:
            return Board(board, patience=LOCK_S)
        except Unavailable:
            if time.monotonic() > end:
                break
    return None


def _some_run(jobs: Board) -> bool:
    """Whether jobs run; so it seems while their board cannot be locked."""
    try:
        return jobs.running() > 0
    except Unavailable:
        return True


def unsent(ports: Collection[int], tables: Collection[Path] = _TCP) -> bool:
    """Whether something that was answered on one of the ports has not reached its client."""
    for table in tables:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue  # without IPv6
        for line in lines:
            local, queues = line.split()[1], line.split()[4]
            if int(local.rpartition(":")[2], 16) in ports and int(queues.partition(":")[0], 16):
                return True
    return False

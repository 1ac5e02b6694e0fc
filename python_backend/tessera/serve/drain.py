"""Lets a server finish its requests before it is stopped.

Triton's own way takes long, whatever the server does: it waits up to 30 s for clients to close
their connections, and then a second for each model process, one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

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
    from tessera.shared.board import Board  # imports numpy

    jobs, activities = Board(board), Activity(activity)
    jobs.refuse()
    began = quiet = jobless = time.monotonic()
    refused_at, refusals = 0.0, 0
    told = cancelled = False
    while not hurry():
        now = time.monotonic()
        if not activities.idle() or unsent(ports):
            quiet = now
        if jobs.running():
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
            jobs.cancel_all()
            say(f"requests are cancelled: they have not ended within {seconds:g} s")
        if now - began > seconds + CANCEL_S:
            return
        time.sleep(_LOOK_S)


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

"""Processes to look at, and what they do over time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tessera.serve.idle import Work

DOING: dict[str, Callable[[float], tuple[float, int]]] = {
    "computing": lambda at: (at * 0.005, 0),
    "reading": lambda at: (0.0, int(at * 5000)),
}
"""Seconds of a CPU and bytes read, by seconds."""


@contextmanager
def program(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command meanwhile, in a session of its own; what it has started ends with it."""
    process = subprocess.Popen(words, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def marked(mark: str) -> dict[int, str]:
    """Process id -> test and command, of those that were started with this in their environment.
    Those that Python keeps for itself until the end are left out.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if mark.encode() in variables and b"multiprocessing.resource_tracker" not in command:
            test = next((v for v in variables if v.startswith(b"PYTEST_CURRENT_TEST=")), b"")
            found[int(folder.name)] = f"{test.decode()}: {command.decode(errors='replace')}"
    return found


def over_time(did: Callable[[float], tuple[float, int]], idle: int) -> Callable[[int], Work]:
    """Each look is half a second later: what processes have done then; `idle` has done nothing."""
    looks: dict[int, int] = {}

    def work(pid: int) -> Work:
        looks[pid] = looks.get(pid, -1) + 1
        at = looks[pid] / 2
        return Work(at, *((0.1, 100) if pid == idle else did(at)))

    return work

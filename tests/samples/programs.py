"""Processes to look at, and what they do over time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tessera.serve.idle import Work

DOING: dict[str, Callable[[float], tuple[float, int]]] = {
    "computing": lambda at: (at * 0.005, 0),
    "reading": lambda at: (0.0, int(at * 5000)),
}
"""Seconds of a CPU and bytes read, by seconds."""


@contextmanager
def program(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command meanwhile."""
    process = subprocess.Popen(words)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def over_time(did: Callable[[float], tuple[float, int]], idle: int) -> Callable[[int], Work]:
    """Each look is half a second later: what processes have done then; `idle` has done nothing."""
    looks: dict[int, int] = {}

    def work(pid: int) -> Work:
        looks[pid] = looks.get(pid, -1) + 1
        at = looks[pid] / 2
        return Work(at, *((0.1, 100) if pid == idle else did(at)))

    return work

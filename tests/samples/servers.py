"""Servers of tests, and what is left of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.server import Server, serving


@contextlib.contextmanager
def ended_whole(bundle: Path, log: Path, *flags: str) -> Iterator[Server]:
    """`serving`, with what holds of every server, whatever has happened to it: SIGTERM ends it and
    all that it started, and nothing is left of it in shared memory.
    """
    with serving(bundle, log, *flags) as running:
        yield running
        family = family_of(running)
        assert len(family) > 10
        assert shared_memory_of(running)
    assert running.process.returncode == 0
    _, alive = psutil.wait_procs(family, timeout=300)
    assert not alive
    assert not shared_memory_of(running)


def family_of(server: Server) -> list[psutil.Process]:
    """Every process that it has started."""
    return psutil.Process(server.process.pid).children(recursive=True)


def shared_memory_of(server: Server) -> list[Path]:
    """What a server keeps there while it runs."""
    return list(Path("/dev/shm").glob(f"tessera-run-*-{server.process.pid}-*"))

"""File helpers: atomic writes, time since last use, locks, and removal of leftover files.

Knows nothing of templates.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

STALE_S = 3600.0
"""A temporary file or folder untouched for this long belongs to a process that has ended."""


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: under a temporary name first, which then replaces `path`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def age(path: Path) -> float:
    """Seconds since a file was last used; infinite if it cannot be read."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a file that exists only while it is locked.

    Yields:
        Whether this process holds the lock. False only without `wait`, if another process holds it.
    """
    operation = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    with contextlib.ExitStack() as stack:
        while True:
            lock = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(lock, operation)
            except BlockingIOError:
                yield False
                return
            if _is_same_file(path, lock.fileno()):
                break
            stack.close()  # the last holder has removed this file: other processes cannot see it
        stack.callback(path.unlink, missing_ok=True)  # runs first, while the lock is still held
        yield True


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Remove files that processes left in a folder when they ended while writing or locking."""
    for path in folder.glob(".*"):
        if age(path) > STALE_S:
            with contextlib.suppress(OSError):  # the file belongs to another user
                _remove(path)


def _remove(path: Path) -> None:
    if path.suffix == ".lock":
        with locked(path, wait=False):
            pass  # a lock that nobody holds is removed on leaving
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

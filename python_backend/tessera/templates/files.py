"""Files that are there whole or not at all, how long ago they were used, locks, and what is left of
processes that have ended.
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
"""A temporary file or folder that nothing has touched for this long belongs to a process that has
ended."""


def write(path: Path, content: bytes) -> None:
    """Write a file whole: to another name first."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def age(path: Path) -> float:
    """Seconds since it was last used."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, which is made for it and removed behind it; whether it is held.

    It is not if another process holds it and this one does not `wait`.
    """
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    with contextlib.ExitStack() as stack:
        while True:
            lock = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(lock, how)
            except BlockingIOError:
                yield False
                return
            if _is(path, lock.fileno()):
                break
            stack.close()  # its last holder has removed it, and others no longer see it
        stack.callback(path.unlink, missing_ok=True)  # first, while the lock is held
        yield True


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Remove what processes left in a folder that ended while they wrote or held a lock."""
    for path in folder.glob(".*"):
        if age(path) > STALE_S:
            with contextlib.suppress(OSError):  # another user's
                _remove(path)


def _remove(path: Path) -> None:
    if path.suffix == ".lock":
        with locked(path, wait=False):
            pass  # held by nobody, it is removed
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

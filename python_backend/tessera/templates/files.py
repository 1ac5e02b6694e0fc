"""File helpers: reads that nothing holds up, atomic writes, time since last use, locks, and removal
of leftover files.

Knows nothing of templates.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")
Used = tuple[int, int, str]
"""Of a file: minus the time of its last use in ns, its inode, and its path in a folder."""

STALLED_S = 5.0
"""Storage that takes longer to find something is done without."""

STALE_S = 3600.0
"""A temporary file or folder untouched for this long belongs to a process that has ended."""


def opened(path: Path) -> BinaryIO:
    """A file that is open for reading.

    Raises:
        FileNotFoundError: there is none, or it is a pipe, a device or a folder: opening or reading
            a pipe takes until somebody writes to it.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "is no regular file", str(path))


def read(path: Path) -> bytes:
    """The content of a file. Raises as `opened`."""
    with opened(path) as file:
        return file.read()


def read_ahead(paths: Iterable[Path]) -> None:
    """Ask the operating system to read files; those that cannot be opened are left out."""
    for path in paths:
        with contextlib.suppress(OSError), opened(path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def write(path: Path, content: bytes, *, lasting: bool = False) -> None:
    """Write a file atomically: under a temporary name first, which then replaces `path`.

    Args:
        path: of the file.
        content: of the file.
        lasting: wait until it is on the disk before it gets its name: a crash of the machine may
            leave the name without the content otherwise. It takes as long as the disk is busy, so
            it is nothing for a request.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
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


def names(folder: Path) -> list[str]:
    """What is in a folder, without hidden and temporary files; nothing if the folder is gone.

    Lists of many thousands use names, not paths, and ask the system for no more than they need.
    """
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def by_use(folder: Path, entries: Iterable[str]) -> list[Used]:
    """Files in a folder, most recently used first. Those that are gone are left out.

    Args:
        folder: where they are.
        entries: paths relative to it.
    """
    found = []
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return []
    try:
        for entry in entries:
            try:
                status = os.stat(entry, dir_fd=descriptor)
            except OSError:
                continue
            found.append((-status.st_mtime_ns, status.st_ino, entry))
    finally:
        os.close(descriptor)
    return sorted(found)


class Patience:
    """Uses storage that may stall, as a network's does, without waiting for long.

    Args:
        seconds: longest wait.
    """

    def __init__(self, seconds: float = STALLED_S) -> None:
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="storage")
        self._reading: Future[Any] | None = None

    def read(self, work: Callable[[], T]) -> T | None:
        """What `work` returns; `None` if it takes too long, or an earlier one still does."""
        reading = self.begin(work)
        try:
            return None if reading is None else reading.result(self._seconds)
        except TimeoutError:
            return None

    def begin(self, work: Callable[[], T]) -> Future[T] | None:
        """Begin with `work`, unless an earlier one still goes on."""
        if self._reading and not self._reading.done():
            return None
        self._reading = reading = self._thread.submit(work)
        return reading


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a file that exists only while it is locked.

    Yields:
        Whether this process holds the lock. False only without `wait`, if another process holds it.
    """
    with contextlib.ExitStack() as stack:
        while True:
            lock = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                with _waiting_mark(path).open("w") as mark:
                    fcntl.flock(mark, fcntl.LOCK_SH)
                    fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_same_file(path, lock.fileno()):
                break
            stack.close()  # the last holder has removed this file: other processes cannot see it
        # These run first, while the lock is still held.
        stack.callback(path.unlink, missing_ok=True)
        stack.callback(_waiting_mark(path).unlink, missing_ok=True)
        yield True


def waited_for(path: Path) -> bool:
    """Whether somebody, in any process, waits for a `locked` file."""
    try:
        mark = _waiting_mark(path).open("rb")
    except FileNotFoundError:
        return False
    with mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _waiting_mark(path: Path) -> Path:
    """A file on which everybody who waits for a lock has a shared one, which ends with them."""
    return path.with_suffix(".waiting")


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Remove files that processes left in a folder when they ended while writing or locking."""
    for name in os.listdir(folder):
        if name.startswith(".") and age(path := folder / name) > STALE_S:
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

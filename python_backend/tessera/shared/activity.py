"""Whether any model process of one server is answering a request.

Each process holds a shared lock on one file meanwhile. The kernel takes the lock back when a
process ends, however that comes about. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from tessera.shared.own_files import open_own


class Activity:
    """The lock of one server; every process opens its own `Activity` on the same file.

    Args:
        path: of the file, which is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_own(path, os.O_RDONLY | os.O_CREAT)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Count as answering; for one thread of a process at a time."""
        fcntl.flock(self._file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def idle(self) -> bool:
        """Whether nobody is answering right now; between the steps of a request nobody is."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return True

"""The files below a folder, listed again only where a directory has changed.

A folder of thousands of files is asked for with every request that names one. A directory's time of
change says whether files have come, gone or been renamed in it. It does not say whether a file has
been written to: whoever needs a file looks at that one.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_DEPTH = 4
"""How deep folders in folders are listed."""

_SETTLED_NS = 2_000_000_000
"""A directory that changed later than this before it was listed is listed again: two changes may
have the same time, since file systems count in ticks."""


@dataclass(frozen=True)
class _Directory:
    """What was in a directory.

    Attributes:
        changed: its time of change.
        settled: whether nothing can have changed since without another time of change.
        files: its files that are wanted, without broken links, sorted.
        folders: directories in it, but hidden ones, sorted.
    """

    changed: int
    settled: bool = field(compare=False)
    files: tuple[str, ...]
    folders: tuple[str, ...]


class Listing:
    """The files below a folder, except in hidden directories. Safe to use from several threads.

    Args:
        folder: a missing one counts as empty.
        suffixes: of the files, in small letters.
    """

    def __init__(self, folder: Path, suffixes: tuple[str, ...]) -> None:
        self._folder = folder
        self._suffixes = suffixes
        self._directories: dict[str, _Directory] = {}
        self._paths: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def paths(self) -> tuple[str, ...]:
        """The files now, sorted; the same tuple as long as no directory has changed. They are plain
        strings: thousands of `Path` take as long as reading the directory.
        """
        with self._lock:
            found: dict[str, _Directory] = {}
            self._look(str(self._folder), 0, found)
            if found != self._directories:
                names = [f"{where}/{file}" for where, d in found.items() for file in d.files]
                self._paths = tuple(sorted(names))
            self._directories = found
            return self._paths

    def _look(self, where: str, depth: int, found: dict[str, _Directory]) -> None:
        try:
            now, changed = time.time_ns(), os.stat(where).st_mtime_ns
            known = self._directories.get(where)
            if known is None or not known.settled or known.changed != changed:
                known = self._read(where, changed, settled=0 <= changed < now - _SETTLED_NS)
        except OSError:
            return  # it was removed, or must not be read
        found[where] = known
        if depth < _DEPTH:
            for name in known.folders:
                self._look(os.path.join(where, name), depth + 1, found)

    def _read(self, where: str, changed: int, *, settled: bool) -> _Directory:
        files, folders = [], []
        with os.scandir(where) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not entry.name.startswith(".") and not entry.is_symlink():
                        folders.append(entry.name)
                elif entry.name.lower().endswith(self._suffixes) and _is_there(entry):
                    files.append(entry.name)
        return _Directory(changed, settled, tuple(sorted(files)), tuple(sorted(folders)))


def _is_there(entry: os.DirEntry[str]) -> bool:
    """Whether an entry leads to something; only links have to be followed to tell."""
    return not entry.is_symlink() or os.path.exists(entry.path)

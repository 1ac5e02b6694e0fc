"""Which files of a bundle have been compared with its manifest in this start of a server.

A bundle of Stable Diffusion XL has 9 GB and more, and every process opens some of it.
`tessera-serve` compares all files once and writes down what it saw of each: `stat` shows a file
that has been written or replaced since. Model processes read this record. Where there is none, as
with a plain tritonserver, a process compares each file when it first opens it.

Standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tessera.errors import BundleError
from tessera.manifest import Manifest, check_file

Seen = tuple[int, ...]
"""Device, inode, size, and times of modification and change: the last cannot be set at will."""
_MOST = 8
"""Threads that read and hash files."""


class CheckedFiles:
    """The files of one bundle that have been compared.

    Args:
        folder: the bundle's folder.
        manifest: its manifest.
        record: what `write` wrote, if there is such a file.
    """

    def __init__(self, folder: Path, manifest: Manifest, record: Path | None = None) -> None:
        self._folder = folder
        self._manifest = manifest
        self._seen = _read(record, manifest.digest) if record else {}

    def check(self, name: str) -> Path:
        """Path of a file, which is compared unless that has been done since it was last written.

        Raises:
            BundleError: the manifest does not list the file, or it differs.
        """
        if name not in self._manifest.files:
            raise BundleError(f"the bundle {self._folder} has no file {name!r}")
        path = self._folder / name
        before = _seen(path)
        if before is None or self._seen.get(name) != before:
            check_file(self._folder, name, self._manifest.files[name])
            if before is not None:
                self._seen[name] = before
        return path

    def check_all(self, progress: Callable[[str], None] = lambda name: None) -> None:
        """Compare all files, several at a time; `progress` is told each name afterwards.

        Raises:
            BundleError: a file is missing or differs.
        """
        files = self._manifest.files
        largest_first = sorted(files, key=lambda name: -files[name].bytes)
        with ThreadPoolExecutor(min(_MOST, len(os.sched_getaffinity(0)))) as pool:
            waiting = {pool.submit(self.check, name): name for name in largest_first}
            try:
                for done in as_completed(waiting):
                    done.result()
                    progress(waiting[done])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def write(self, record: Path) -> None:
        """Write down which files have been compared."""
        record.write_text(json.dumps({"bundle": self._manifest.digest, "files": self._seen}))


def _seen(path: Path) -> Seen | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read(record: Path, digest: str) -> dict[str, Seen]:
    """What a record of this bundle and this user says; nothing if there is none, or it cannot be
    read.
    """
    try:
        content = json.loads(record.read_text())
        if content["bundle"] != digest or record.stat().st_uid != os.geteuid():
            return {}
        return {name: tuple(seen) for name, seen in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}

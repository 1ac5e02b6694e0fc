"""Which recordings clients have registered, so that others are removed first.

A file `registered` in a recording's folder says so. It goes with an evicted recording. That of a
damaged one is kept beside all recordings, by name, until this one is made again.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from tessera.templates.files import age, names

PROTECTED_S = 7 * 24 * 3600.0
"""For so long after its latest use, a registered recording is removed after all others."""

_REGISTERED = "registered"


class Protection:
    """Registrations of recordings.

    Args:
        root: the folder of those whose recordings are to be made again; created if it is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def register(self, folder: Path) -> None:
        """Note that a client has asked for the recording in a folder."""
        with contextlib.suppress(OSError):  # it may have been evicted meanwhile
            (folder / _REGISTERED).touch()

    def covers(self, folder: Path, manifest: Path) -> bool:
        """Whether a client has registered the recording in a folder, and it is in use: its manifest
        has been touched within `PROTECTED_S`.
        """
        return (folder / _REGISTERED).exists() and age(manifest) < PROTECTED_S

    def discard(self, folder: Path) -> None:
        """Remove a recording that is to be made again; it stays registered."""
        if (folder / _REGISTERED).exists():
            for name in names(self._root):
                if age(self._root / name) >= PROTECTED_S:
                    self._forget(name)
            with contextlib.suppress(OSError):
                (self._root / folder.name).touch()
        shutil.rmtree(folder, ignore_errors=True)

    def replace(self, folder: Path, new: Path) -> None:
        """Put a recording that was made again, in the folder `new`, in the place of another.

        Raises:
            OSError: it cannot be renamed.
        """
        self.discard(folder)
        if age(self._root / folder.name) < PROTECTED_S:
            self.register(new)
        new.rename(folder)
        self._forget(folder.name)

    def _forget(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._root / name).unlink()

"""Notes of recordings that requests will need, one file each, named like the recording."""

from __future__ import annotations

import json
from pathlib import Path

from tessera.templates.files import age, read, write
from tessera.templates.keys import RecordingKey

WANTED, WANTED_S = 8, 3600.0
"""How many notes are kept, and for how long."""

_AGAIN = "again"
"""In a note: it has been put more than once."""


class Notes:
    """The notes in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: RecordingKey) -> None:
        """Note that a recording will be needed, or is needed again.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        path = self._path(key)
        content = key.fields | ({_AGAIN: True} if path.exists() else {})
        write(path, json.dumps(content).encode())
        self._kept()

    def keys(self, bundle: str, *, again: bool = False) -> list[RecordingKey]:
        """Keys of a bundle's recordings that are needed but missing, latest note first; `again`:
        only those that have been needed more than once.
        """
        keys = []
        for path in self._kept():
            try:
                content = json.loads(read(path))
                if content.pop(_AGAIN, False) or not again:
                    keys.append(RecordingKey.from_fields(content))
            except (ValueError, TypeError, AttributeError):
                path.unlink(missing_ok=True)
            except OSError:
                continue  # it can be read later, or another process has removed it
        return [key for key in keys if key.bundle == bundle]

    def remove(self, key: RecordingKey) -> None:
        """Remove the note of a recording."""
        self._path(key).unlink(missing_ok=True)

    def _kept(self) -> list[Path]:
        """Latest first; removes those that are too old or too many."""
        notes = sorted(self._folder.glob("*.json"), key=age)
        kept = [path for path in notes[:WANTED] if age(path) < WANTED_S]
        for path in notes[len(kept) :]:
            path.unlink(missing_ok=True)
        return kept

    def _path(self, key: RecordingKey) -> Path:
        return self._folder / f"{key.digest}.json"

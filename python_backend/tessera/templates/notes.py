"""Notes of recordings that requests will need: a part of the template store."""

from __future__ import annotations

import json
from pathlib import Path

from tessera.templates.files import age, read, write
from tessera.templates.keys import RecordingKey

WANTED, WANTED_S = 8, 3600.0
"""How many wanted recordings are remembered, and for how long."""


class Notes:
    """The notes of one store, whose folder a subclass sets."""

    root: Path

    def want(self, key: RecordingKey) -> None:
        """Note that a recording will be needed. `wanted` lists these notes."""
        text = json.dumps(key.fields)
        write(self.root / "wanted" / f"{key.digest}.json", text.encode())
        self._notes()

    def wanted(self, bundle: str) -> list[RecordingKey]:
        """Keys of a bundle's recordings that are needed but missing, latest note first."""
        keys = []
        for path in self._notes():
            try:
                keys.append(RecordingKey.from_fields(json.loads(read(path))))
            except (ValueError, TypeError, AttributeError):
                path.unlink(missing_ok=True)
            except OSError:
                continue  # it can be read later, or another process has removed it
        return [key for key in keys if key.bundle == bundle]

    def _notes(self) -> list[Path]:
        """Notes of wanted recordings, latest first; removes those that are too old or too many."""
        notes = sorted((self.root / "wanted").glob("*.json"), key=age)
        kept = [path for path in notes[:WANTED] if age(path) < WANTED_S]
        for path in notes[len(kept) :]:
            path.unlink(missing_ok=True)
        return kept

    def done(self, key: RecordingKey) -> None:
        """Remove the note that a recording is wanted."""
        (self.root / "wanted" / f"{key.digest}.json").unlink(missing_ok=True)

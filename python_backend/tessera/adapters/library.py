"""The LoRA files of some folders, by name.

Hot: folders are looked at anew for every request that names a LoRA. A name is a file's stem and is
only ever looked up among those found: it cannot lead out of the folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.errors import unknown_name
from tessera.manifest import ADAPTERS

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class AdapterFile:
    """A file as it is now; another `version` means another content."""

    name: str
    path: Path
    size: int
    version: tuple[int, int, int]


class Library:
    """Files called `*.safetensors`.

    Args:
        folders: looked at in this order; the first file of a name counts. Folders that are missing
            are empty.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)

    @classmethod
    def of_bundle(cls, folder: Path, further: Sequence[Path] = ()) -> Library:
        """The folder of a bundle's own, then further ones."""
        return cls([folder / ADAPTERS, *further])

    def entries(self) -> dict[str, AdapterFile]:
        """Every file, by name, in alphabetical order."""
        found: dict[str, AdapterFile] = {}
        for folder in self._folders:
            for entry in _scan(folder):
                found.setdefault(entry.name, entry)
        return dict(sorted(found.items()))

    def find(self, name: str, field: str) -> AdapterFile:
        """The file of that name.

        Raises:
            InvalidInput: there is none; lists names that are close, or else all of them. `field` is
                where the name stood.
        """
        entries = self.entries()
        if name in entries:
            return entries[name]
        raise unknown_name(field, name, entries, "LoRA")


def _scan(folder: Path) -> list[AdapterFile]:
    try:
        paths = [p for p in folder.iterdir() if p.suffix == SUFFIX]
    except OSError:
        return []
    entries = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue  # it went away, or is a link to nothing
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        entries.append(AdapterFile(path.stem, path, stat.st_size, version))
    return entries

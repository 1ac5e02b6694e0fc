"""The adapter files in some folders, by name.

Folders are scanned again for every request that names a LoRA, so new files work without a restart.
A name is a file's stem. It is only looked up among the scanned files, so it cannot lead out of the
folders. Knows no file contents.
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
    """An adapter file on disk.

    Attributes:
        name: the file's stem.
        path: the file.
        size: bytes.
        version: changes whenever the file's content does.
    """

    name: str
    path: Path
    size: int
    version: tuple[int, int, int]


class Library:
    """The `*.safetensors` files in some folders.

    Args:
        folders: folders in order of precedence: the first file of a name is used. A missing folder
            counts as empty.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)

    @classmethod
    def of_bundle(cls, folder: Path, further: Sequence[Path] = ()) -> Library:
        """The folder of a bundle's own, then further ones."""
        return cls([folder / ADAPTERS, *further])

    def entries(self) -> dict[str, AdapterFile]:
        """All files by name, in alphabetical order."""
        files: dict[str, AdapterFile] = {}
        for folder in self._folders:
            for file in _scan(folder):
                files.setdefault(file.name, file)
        return dict(sorted(files.items()))

    def find(self, name: str, field: str) -> AdapterFile:
        """The file of a name.

        Args:
            name: the LoRA's name.
            field: the request field that has the name, for the error.

        Raises:
            InvalidInput: there is none. The message lists similar names, or else all of them.
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
    files = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue  # it was removed, or is a broken link
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        files.append(AdapterFile(path.stem, path, stat.st_size, version))
    return files

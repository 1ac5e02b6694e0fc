"""The adapter files in some folders, by name.

Folders are listed when a library is made, so that no request waits for it, and looked at again for
every request that names a LoRA, so new files work without a restart. A name is a file's path in its
folder without `.safetensors`. It is only looked up among the listed files, so it cannot lead out of
the folders.

Names are Unicode, whatever the process's locale is: Triton's Python processes know ASCII only, and
have the other bytes of a path as surrogates. Letters that can be written in two ways are composed
(NFC), since file systems differ in this. Knows no file contents.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from tessera.adapters.listing import Listing
from tessera.errors import unknown_name
from tessera.manifest import ADAPTERS

SUFFIX = ".safetensors"
"""In small or capital letters."""
PEFT_MODEL, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""What PEFT's `save_pretrained` writes: weights, and beside them alpha and what else they need."""


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file on disk.

    Attributes:
        name: see the module.
        path: the file.
        size: bytes.
        version: changes whenever the file's content, or that of PEFT's configuration beside it,
            does.
        problem: why it cannot be used, if its name is the reason; else empty.
    """

    name: str
    path: Path
    size: int
    version: tuple[int, ...]
    problem: str = ""


@dataclass(frozen=True)
class _Named:
    """A file, and what is wrong with its name."""

    path: str
    problem: str


class Library:
    """The `*.safetensors` files in some folders and in the folders in these, but hidden ones.

    Args:
        folders: folders in order of precedence: the first file of a name is used. A missing folder
            counts as empty.
        suffixes: of the files, in small letters.
    """

    def __init__(self, folders: Sequence[Path], suffixes: Sequence[str] = (SUFFIX,)) -> None:
        self._listings = tuple(Listing(folder, tuple(suffixes)) for folder in folders)
        self._folders = tuple(folders)
        self._named: dict[str, _Named] = {}
        self._of: tuple[tuple[str, ...], ...] = ()
        self._names()

    @classmethod
    def of_bundle(
        cls, folder: Path, further: Sequence[Path] = (), suffixes: Sequence[str] = (SUFFIX,)
    ) -> Library:
        """The folder of a bundle's own, then further ones."""
        return cls([folder / ADAPTERS, *further], suffixes)

    def entries(self) -> dict[str, AdapterFile]:
        """All files by name, in alphabetical order."""
        found = ((name, _file(name, each)) for name, each in self._names().items())
        return {name: file for name, file in found if file is not None}

    def __len__(self) -> int:
        return len(self._names())

    def paths(self) -> tuple[tuple[str, ...], ...]:
        """The files of each folder; the same tuples as long as none has come, gone or been replaced
        by another one.
        """
        return tuple(listing.paths() for listing in self._listings)

    def find(self, name: str, field: str) -> AdapterFile:
        """The file of a name.

        Args:
            name: the LoRA's name.
            field: the request field that has the name, for the error.

        Raises:
            InvalidInput: there is none. The message lists similar names, or else all of them.
        """
        file = self.of(unicodedata.normalize("NFC", name))
        if file is None:
            raise unknown_name(field, name, self._names(), "LoRA")
        return file

    def of(self, name: str) -> AdapterFile | None:
        """The file of a name as the library has it, if there is one."""
        named = self._names().get(name)
        return _file(name, named) if named else None

    def _names(self) -> dict[str, _Named]:
        """All files by name, in alphabetical order."""
        paths = self.paths()
        if any(now is not before for now, before in zip_longest(paths, self._of)):
            named: dict[str, _Named] = {}
            for folder, of_folder in zip(self._folders, paths, strict=True):
                named = _named(folder, of_folder) | named
            self._named, self._of = dict(sorted(named.items())), paths
        return self._named


def _named(folder: Path, paths: Sequence[str]) -> dict[str, _Named]:
    named: dict[str, _Named] = {}
    before = len(str(folder)) + 1
    for path in paths:
        name, problem = _name(path[before:])
        if name in named:
            other = os.path.basename(named[name].path)
            problem = f"has the same name as {_shown(other)}; rename one of them"
            name += _shown(os.path.splitext(path)[1])
        named[name] = _Named(path, problem)
    return named


def _file(name: str, named: _Named) -> AdapterFile | None:
    """A file as it is now; `None` if it was removed."""
    try:
        stat = os.stat(named.path)
    except OSError:
        return None
    path = Path(named.path)
    version = (stat.st_mtime_ns, stat.st_size, stat.st_ino, *_version_of_config(path))
    return AdapterFile(name, path, stat.st_size, version, named.problem)


def _version_of_config(path: Path) -> tuple[int, ...]:
    if path.name != PEFT_MODEL:
        return ()
    try:
        stat = path.with_name(PEFT_CONFIG).stat()
    except OSError:
        return ()
    return (stat.st_mtime_ns, stat.st_size)


def _name(path: str) -> tuple[str, str]:
    """The name of a file in its folder, and what is wrong with it."""
    written = os.fsencode(os.path.splitext(path)[0])
    try:
        return unicodedata.normalize("NFC", written.decode()), ""
    except UnicodeDecodeError:
        return written.decode(errors="replace"), "has a name that is not UTF-8; rename it"


def _shown(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")

"""Templates on disk: images, and recordings of their activations.

::

    <root>/pictures/<template>.npy
    <root>/recordings/<key>/recording.json, 0000.safetensors, ...
    <root>/texts/<key>.safetensors   what a prompt is to the network, for recordings with a prompt
    <root>/wanted/<key>.json         recordings that a request will need
    <root>/registered/<key>          damaged ones that a client has registered

A recording is written to a temporary folder and renamed, so that it appears complete or not at all.
Files are on the disk by then, so that this holds when the machine crashes, too.
`recording.json` has a checksum of each of its files. A file that does not match is reported as
`Damaged`, and its recording is removed, so that it is made again.

When recordings exceed their budget, the least recently used are removed first: of those that no
client has registered, and only then of those that one has and that are in use (see `protection`).
The least recently used go first, too, of images without recordings and for notes of wanted
recordings when there are too many. Several processes use one store. A file lock keeps two of them
from recording the same key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from tessera.templates.files import (
    STALLED_S,
    Patience,
    Used,
    by_use,
    locked,
    names,
    read,
    read_ahead,
    sweep,
    waited_for,
    write,
)
from tessera.templates.keys import RecordingKey as RecordingKey
from tessera.templates.notes import WANTED_S, Notes
from tessera.templates.pictures import Pictures
from tessera.templates.protection import Protection
from tessera.templates.storage import Storage
from tessera.templates.texts import Texts
from tessera.types import Array, Tensors

T = TypeVar("T")

_MANIFEST = "recording.json"
_FOLDERS = ("pictures", "recordings", "texts", "wanted")

UNRECORDED = 256
"""How many images without recordings are kept: the most recently used."""

PROMPTED = 64
"""How many recordings of one template with different prompts are compared with a prompt."""


class Damaged(Exception):
    """A file of a recording is missing, unreadable or not what was written.

    Attributes:
        digest: the recording's digest.
    """

    def __init__(self, digest: str, message: str) -> None:
        super().__init__(message)
        self.digest = digest


@dataclass(frozen=True)
class Recording:
    """A complete recording on disk.

    Attributes:
        folder: the folder of its files.
        key: what its activations depend on.
        storage: the form of its numbers.
        checksums: (bytes, CRC-32) of each kept step's file, by step.
    """

    folder: Path
    key: RecordingKey
    storage: Storage
    checksums: dict[int, tuple[int, int]] = field(repr=False)

    @property
    def bytes(self) -> int:
        """Bytes of all its steps."""
        return sum(size for size, _ in self.checksums.values())

    def file(self, step: int) -> Path:
        """The file of a kept step."""
        return self.folder / f"{step:04}.safetensors"


class TemplateStore:
    """The templates in one folder.

    Args:
        root: the folder, created if it is missing.
        budget: bytes that all recordings may take together.

    Attributes:
        patience: waits for its storage.
    """

    def __init__(self, root: Path, *, budget: int) -> None:
        self.root = root
        self.budget = budget
        self.pictures = Pictures(root / "pictures")
        self.texts = Texts(root / "texts")
        self.notes = Notes(root / "wanted")
        self._protection = Protection(root / "registered")
        self.patience, self._ahead = Patience(STALLED_S), Patience()
        self._known: dict[Used, Recording] = {}
        for name in _FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)

    def keep(self, picture: Array) -> str:
        """Store an image (h, w, 3), UINT8, and return its template id.

        Keeps only the `UNRECORDED` most recently used of the images without recordings.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        identity, new = self.pictures.put(picture)
        if not new:
            return identity
        self._sweep()
        pictures = self.pictures.names()
        if len(pictures) > UNRECORDED:
            unrecorded = pictures - self._recorded()
            if len(unrecorded) > UNRECORDED:
                for other in self.pictures.by_use(unrecorded)[UNRECORDED:]:
                    self.pictures.remove(other)
        return identity

    def find(self, key: RecordingKey) -> Recording | None:
        """The recording of a key, marked as used, or `None`; so, too, if the storage stalls."""
        return self.patience.read(lambda: self._find(key))

    def _find(self, key: RecordingKey) -> Recording | None:
        recording = self._read(self.root / "recordings" / key.digest)
        if recording is None or recording.key != key:
            return None
        with contextlib.suppress(OSError):
            os.utime(recording.folder / _MANIFEST)
        return recording

    def patiently(self, work: Callable[[], T]) -> T | None:
        """What `work` has from the storage; `None` if it stalls. It may not call this or `find`."""
        return self.patience.read(work)

    def prompted(self, key: RecordingKey) -> list[str]:
        """Texts of recordings with prompts, like a key otherwise; at most `PROMPTED`."""
        first = f"{key.with_text('').digest}-"
        found = (self.root / "recordings").glob(f"{first}*")
        return [path.name.removeprefix(first) for path in islice(found, PROMPTED)]

    def load(self, recording: Recording, step: int) -> Tensors:
        """The arrays of a kept step.

        Raises:
            Damaged: the file is missing or not what was written, and the recording has been
                removed; or the file cannot be read at the moment.
        """
        size, checksum = recording.checksums[step]
        try:
            content = read(recording.file(step))
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self._protection.discard(recording.folder)
            message = f"{recording.file(step)} cannot be read: {error}"
            raise Damaged(recording.key.digest, message) from error
        if len(content) != size or zlib.crc32(content) != checksum:
            self._protection.discard(recording.folder)
            raise Damaged(recording.key.digest, f"{recording.file(step)} is not what was written")
        import safetensors.torch  # whoever only lists templates needs no torch

        try:
            return safetensors.torch.load(content)
        except safetensors.SafetensorError as error:  # under a checksum that is right
            self._protection.discard(recording.folder)
            message = f"{recording.file(step)} has no tensors: {error}"
            raise Damaged(recording.key.digest, message) from error

    def read_ahead(self, recording: Recording, steps: Iterable[int]) -> None:
        """Ask the operating system to read the files of kept steps ahead; does not wait for it."""
        files = [recording.file(step) for step in steps]
        self._ahead.begin(lambda: read_ahead(files))

    def record(
        self, key: RecordingKey, storage: Storage, steps: Iterable[tuple[int, Tensors]]
    ) -> Recording:
        """Write a recording from its kept steps.

        Raises:
            OSError: the disk is full or cannot be written. No partial recording remains.
        """
        import safetensors.torch

        from tessera.templates.packing import pack

        self._sweep()
        target = self.root / "recordings" / key.digest
        folder = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
        try:
            checksums: dict[int, tuple[int, int]] = {}
            recording = Recording(folder, key, storage, checksums)
            for step, arrays in steps:
                content = safetensors.torch.save(pack(arrays, storage.kind))
                write(recording.file(step), content, lasting=True)
                checksums[step] = (len(content), zlib.crc32(content))
            form: dict[str, Any] = {"key": key.fields, "storage": dataclasses.asdict(storage)}
            recording_json = json.dumps(form | {"checksums": checksums})
            write(folder / _MANIFEST, recording_json.encode(), lasting=True)
            self._protection.replace(target, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._make_room(keep=target)
        self.sweep_texts()
        return dataclasses.replace(recording, folder=target)

    def register(self, recording: Recording) -> None:
        """Note that a client has asked for a recording: what the server records by itself does not
        push it out.
        """
        self._protection.register(recording.folder)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes fit into the budget beside the protected recordings."""
        return size + sum(r.bytes for r in self.recordings() if self._protected(r)) <= self.budget

    def remove(self, recording: Recording) -> None:
        """Remove a recording."""
        shutil.rmtree(recording.folder, ignore_errors=True)

    def evict(self, identity: str) -> int:
        """Remove a template's image and recordings; returns the bytes of the recordings."""
        recordings = [r for r in self.recordings() if r.key.template == identity]
        for recording in recordings:
            self.remove(recording)
        self.pictures.remove(identity)
        return sum(r.bytes for r in recordings)

    def recordings(self) -> list[Recording]:
        """All recordings, most recently used first. Each is read once after it was used."""
        root, known = self.root / "recordings", dict[Used, Recording]()
        for version in by_use(root, [f"{name}/{_MANIFEST}" for name in names(root)]):
            recording = self._known.get(version) or self._read((root / version[2]).parent)
            if recording is not None:
                known[version] = recording
        self._known = known  # at once: another thread may look at it
        return list(known.values())

    def _recorded(self) -> set[str]:
        """Ids of the templates that have recordings. Only new ones are read, and no time of use is
        asked for: a recording's name stands for its template.
        """
        there = set(names(self.root / "recordings"))
        if there - self._templates.keys():
            self.recordings()
        return {template for name, template in self._templates.items() if name in there}

    @property
    def _templates(self) -> dict[str, str]:
        """Of the recordings that have been read, by name."""
        return {v[2].partition("/")[0]: r.key.template for v, r in self._known.items()}

    def locked(self, key: RecordingKey, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Lock a key, so that only one process records it. See `files.locked`."""
        return locked(self._lock(key), wait=wait)

    def waited_for(self, key: RecordingKey) -> bool:
        """Whether somebody, in any process, waits for a locked key."""
        return waited_for(self._lock(key))

    def _lock(self, key: RecordingKey) -> Path:
        return self.root / "recordings" / f".{key.digest}.lock"

    def _read(self, folder: Path) -> Recording | None:
        """The recording in a folder; `None` if there is none or it cannot be read now.

        Only a damaged recording is removed.
        """
        try:
            content = json.loads(read(folder / _MANIFEST))
        except (ValueError, RecursionError):
            self._protection.discard(folder)
            return None
        except OSError:
            return None
        try:
            recording = Recording(
                folder,
                RecordingKey.from_fields(content["key"]),
                Storage(**content["storage"]),
                {int(k): (int(v[0]), int(v[1])) for k, v in content["checksums"].items()},
            )
            kept = recording.storage.kept(recording.key.evaluations)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None  # written by another version of Tessera
        if sorted(recording.checksums) != kept:
            self._protection.discard(folder)
            return None
        return recording

    def _make_room(self, keep: Path) -> None:
        """Remove recordings until the rest fit the budget: the least recently used first, but
        protected ones last.
        """
        used = 0
        found = self.recordings()
        for recording in sorted(found, key=lambda r: (r.folder != keep, not self._protected(r))):
            used += recording.bytes
            if used > self.budget and recording.folder != keep:
                self.remove(recording)
                used -= recording.bytes

    def sweep_texts(self) -> None:
        """Remove texts that are older than an hour and that neither recording nor note needs."""
        self.texts.sweep(self._needs, WANTED_S)

    def _needs(self, name: str) -> bool:
        """Whether a text has a recording or a note of one, or is the empty prompt's of others."""
        recorded, noted = self.root / "recordings", self.root / "wanted" / f"{name}.json"
        return noted.exists() or any(recorded.glob(f"{name}*"))

    def _sweep(self) -> None:
        for name in _FOLDERS:
            sweep(self.root / name)

    def _protected(self, recording: Recording) -> bool:
        return self._protection.covers(recording.folder, recording.folder / _MANIFEST)

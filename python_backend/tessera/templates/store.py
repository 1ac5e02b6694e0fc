"""Templates on disk: pictures, and recordings of their activations.

::

    <root>/pictures/<template>.npy
    <root>/recordings/<key>/recording.json, 0000.safetensors, ...
    <root>/wanted/<key>.json         recordings that somebody will need

A recording is written to a temporary folder and renamed: it is there whole or not at all. Every
file of it has its checksum in `recording.json`; one that does not fit is reported as `Damaged` and
the recording removed, so that it is made again. When recordings outgrow their budget, those that
have not been used for longest go first; so do pictures without recordings, and what is wanted, when
they are too many. Several processes use one store; a file lock keeps two of them from recording the
same thing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from tessera.templates.files import age, locked, sweep, write
from tessera.templates.pictures import Pictures
from tessera.templates.storage import Storage
from tessera.types import Array, Tensors

_MANIFEST = "recording.json"
_FOLDERS = ("pictures", "recordings", "wanted")

UNRECORDED = 256
"""How many pictures without recordings are kept: the latest used."""

WANTED, WANTED_S = 8, 3600.0
"""How many recordings are remembered that somebody will need, and for how long."""


class Damaged(Exception):
    """A file of a recording is missing, cannot be read or is not what was written; `digest` is the
    recording's.
    """

    def __init__(self, digest: str, sentence: str) -> None:
        super().__init__(sentence)
        self.digest = digest


@dataclass(frozen=True)
class RecordingKey:
    """What activations depend on.

    Attributes:
        bundle: digest of the bundle.
        template: id of the picture, which says its size and pixels.
        scheduler, steps: they decide how noisy the template is at each step.
        seed: of the template's noise.
    """

    bundle: str
    template: str
    scheduler: str
    steps: int
    seed: int

    @property
    def digest(self) -> str:
        """Names the recording."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Recording:
    """A whole recording on disk.

    Attributes:
        folder: where it is.
        key: what it is of.
        storage: in which form.
        checksums: by kept step: (bytes, CRC-32) of its file.
    """

    folder: Path
    key: RecordingKey
    storage: Storage
    checksums: dict[int, tuple[int, int]] = field(repr=False)

    @property
    def bytes(self) -> int:
        """Of all its steps."""
        return sum(size for size, _ in self.checksums.values())

    def file(self, step: int) -> Path:
        """Of a kept step."""
        return self.folder / f"{step:04}.safetensors"


class TemplateStore:
    """The templates of one folder.

    Args:
        root: made if it is missing.
        budget: bytes of all recordings together.
    """

    def __init__(self, root: Path, *, budget: int) -> None:
        self.root = root
        self.budget = budget
        self.pictures = Pictures(root / "pictures")
        for name in _FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)

    def keep(self, picture: Array) -> str:
        """Keep a picture (h, w, 3) of UINT8; returns its template's id. Of pictures without
        recordings `UNRECORDED` stay.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        identity = self.pictures.put(picture)
        self._sweep()
        known = self.pictures.known()
        if len(known) > UNRECORDED:
            recorded = {r.key.template for r in self.recordings()}
            for other in [i for i in known if i not in recorded][UNRECORDED:]:
                self.pictures.remove(other)
        return identity

    def find(self, key: RecordingKey) -> Recording | None:
        """The recording of a key, marked as used; `None` if there is none."""
        recording = self._read(self.root / "recordings" / key.digest)
        if recording is None or recording.key != key:
            return None
        with contextlib.suppress(OSError):
            os.utime(recording.folder / _MANIFEST)
        return recording

    def load(self, recording: Recording, step: int) -> Tensors:
        """The arrays of a kept step.

        Raises:
            Damaged: they are not those that were written, and the recording has been removed; or
                they cannot be read at the moment.
        """
        size, checksum = recording.checksums[step]
        try:
            content = recording.file(step).read_bytes()
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self.remove(recording)
            sentence = f"{recording.file(step)} cannot be read: {error}"
            raise Damaged(recording.key.digest, sentence) from error
        if len(content) != size or zlib.crc32(content) != checksum:
            self.remove(recording)
            raise Damaged(recording.key.digest, f"{recording.file(step)} is not what was written")
        import safetensors.torch  # whoever only lists templates needs no torch

        return safetensors.torch.load(content)

    def read_ahead(self, recording: Recording, steps: Iterable[int]) -> None:
        """Ask the system to read files of kept steps before somebody needs them."""
        for step in steps:
            with contextlib.suppress(OSError):
                descriptor = os.open(recording.file(step), os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def record(
        self, key: RecordingKey, storage: Storage, steps: Iterable[tuple[int, Tensors]]
    ) -> Recording:
        """Write a recording from its kept steps.

        Raises:
            OSError: the disk is full, or cannot be written; nothing is left behind.
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
                write(recording.file(step), content)
                checksums[step] = (len(content), zlib.crc32(content))
            described = {
                "key": dataclasses.asdict(key),
                "storage": dataclasses.asdict(storage),
                "checksums": checksums,
            }
            write(folder / _MANIFEST, json.dumps(described).encode())
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._make_room(keep=target)
        return dataclasses.replace(recording, folder=target)

    def remove(self, recording: Recording) -> None:
        """Remove a recording."""
        shutil.rmtree(recording.folder, ignore_errors=True)

    def evict(self, identity: str) -> int:
        """Remove a template's picture and recordings; returns how many bytes became free."""
        mine = [r for r in self.recordings() if r.key.template == identity]
        for recording in mine:
            self.remove(recording)
        self.pictures.remove(identity)
        return sum(r.bytes for r in mine)

    def recordings(self) -> list[Recording]:
        """All of them, the latest used first."""
        found = (self.root / "recordings").glob("[!.]*")
        folders = sorted(found, key=lambda f: age(f / _MANIFEST))
        return [r for r in map(self._read, folders) if r is not None]

    def locked(self, key: RecordingKey, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Only one process at a time records a key; the others wait here, or are told that it is
        not theirs.
        """
        return locked(self.root / "recordings" / f".{key.digest}.lock", wait=wait)

    def _read(self, folder: Path) -> Recording | None:
        """The recording of a folder; `None` if there is none, or none that can be read now. Only
        one that is damaged is removed.
        """
        try:
            content = json.loads((folder / _MANIFEST).read_text())
        except ValueError:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        except OSError:
            return None
        try:
            return Recording(
                folder,
                RecordingKey(**content["key"]),
                Storage(**content["storage"]),
                {int(k): (int(v[0]), int(v[1])) for k, v in content["checksums"].items()},
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None  # another version's

    def _make_room(self, keep: Path) -> None:
        """Remove what has not been used for longest until the budget holds."""
        used = 0
        for recording in self.recordings():
            used += recording.bytes
            if used > self.budget and recording.folder != keep:
                self.remove(recording)
                used -= recording.bytes

    def _sweep(self) -> None:
        for name in _FOLDERS:
            sweep(self.root / name)

    def want(self, key: RecordingKey) -> None:
        """Remember that a recording will be needed, for `wanted`."""
        text = json.dumps(dataclasses.asdict(key))
        write(self.root / "wanted" / f"{key.digest}.json", text.encode())
        self._notes()

    def wanted(self, bundle: str) -> list[RecordingKey]:
        """Recordings of a bundle that are needed and not there, the latest asked for first."""
        keys = []
        for path in self._notes():
            try:
                keys.append(RecordingKey(**json.loads(path.read_text())))
            except (ValueError, TypeError):
                path.unlink(missing_ok=True)
            except OSError:
                continue  # it can be read later, or somebody has removed it
        return [key for key in keys if key.bundle == bundle]

    def _notes(self) -> list[Path]:
        """Of what is wanted, the latest first; what is too old or too much is forgotten."""
        notes = sorted((self.root / "wanted").glob("*.json"), key=age)
        kept = [path for path in notes[:WANTED] if age(path) < WANTED_S]
        for path in notes[len(kept) :]:
            path.unlink(missing_ok=True)
        return kept

    def done(self, key: RecordingKey) -> None:
        """Forget that a recording was wanted."""
        (self.root / "wanted" / f"{key.digest}.json").unlink(missing_ok=True)

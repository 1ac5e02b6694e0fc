"""Latents of running jobs in shared memory, for previews.

`denoise` writes, and only for jobs that somebody watches. `jobs` reads. The file lies beside the
board. It has places for a few jobs, and a place has two records, which are written in turns. Each
record has a checksum, so a reader takes the newest record that is whole. It never waits for the
writer, and a writer that is killed in the middle leaves the older record.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.shared.own_files import open_own

Latents = npt.NDArray[np.float32]

RECORDS = 2
ATTEMPTS = 5
"""How often a reader looks again that found no whole record of a job."""

_LAYOUT = np.dtype([("places", "i8"), ("floats", "i8")])
_HEAD = np.dtype(
    [(n, "i8") for n in ("number", "ticket", "step", "channels", "height", "width")]
    + [("checksum", "i8")]
)
_SHAPE = ("channels", "height", "width")


class PreviewWriter:
    """The side of `denoise`.

    Args:
        path: of the file; what an earlier writer left in it is forgotten.
        places: jobs that may be watched at a time; the one written longest ago makes room.
        floats: values in the largest latents.
    """

    def __init__(self, path: Path, *, places: int, floats: int) -> None:
        file = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            os.posix_fallocate(file, 0, _size(places, floats))  # else a full disk is a SIGBUS
            memory = mmap.mmap(file, _size(places, floats))
        finally:
            os.close(file)
        self._heads, self._values = _records(memory, places, floats)
        self._heads["number"] = 0
        np.ndarray((), _LAYOUT, memory)[...] = (places, floats)
        self._number = 0

    def write(self, ticket: int, step: int, latents: Latents) -> None:
        """Publish a job's latents (c, h, w) after `step`; again for the same step does nothing."""
        place = self._place(ticket)
        heads = self._heads[place]
        newest = int(heads["number"].argmax())
        if heads["number"][newest] and tuple(heads[["ticket", "step"]][newest]) == (ticket, step):
            return
        self._number += 1
        self._put(place, 1 - newest, ticket, step, latents)

    def _put(self, place: int, record: int, ticket: int, step: int, latents: Latents) -> None:
        head = np.array((self._number, ticket, step, *latents.shape, 0), _HEAD)
        values = self._values[place, record, : latents.size]
        self._heads[place, record]["checksum"] = -1
        values[:] = latents.reshape(-1)
        head["checksum"] = _checksum(head, values)
        self._heads[place, record] = head

    def _place(self, ticket: int) -> int:
        """The job's place, or the one that was written longest ago."""
        own = np.flatnonzero((self._heads["ticket"] == ticket).any(axis=1))
        if len(own):
            return int(own[0])
        place = int(self._heads["number"].max(axis=1).argmin())
        self._heads[place] = np.zeros(RECORDS, _HEAD)
        return place


class PreviewReader:
    """The side of `jobs`.

    Args:
        path: of the file; there may be none yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mapped: tuple[Any, npt.NDArray[np.float32]] | None = None

    def read(self, ticket: int) -> tuple[int, Latents] | None:
        """The step and the latents (c, h, w) of a job; `None` if there are none."""
        if (mapped := self._map()) is None:
            return None
        heads, values = mapped
        for _ in range(ATTEMPTS):
            found = np.argwhere((heads["ticket"] == ticket) & (heads["number"] > 0))
            if not len(found):
                return None
            for place in sorted(map(tuple, found), key=lambda at: -int(heads[at]["number"])):
                if whole := _whole(heads[place].copy(), values[place], ticket):
                    return whole
        return None

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody else of this server is in such a block; does not wait."""
        file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(file)

    def _map(self) -> tuple[Any, npt.NDArray[np.float32]] | None:
        if self._mapped is None and self._path.exists():
            with self._path.open("r+b") as file:
                head = file.read(_LAYOUT.itemsize)
                layout = np.frombuffer(head.ljust(_LAYOUT.itemsize, b"\0"), _LAYOUT)[0]
                places, floats = int(layout["places"]), int(layout["floats"])
                if not places:  # the writer is about to begin
                    return None
                memory = mmap.mmap(file.fileno(), _size(places, floats))
            self._mapped = _records(memory, places, floats)
        return self._mapped


def _whole(head: Any, values: Latents, ticket: int) -> tuple[int, Latents] | None:
    """A copy of a record's step and latents if it is that job's and was not written meanwhile."""
    shape = tuple(int(head[name]) for name in _SHAPE)
    size = math.prod(shape)
    if min(shape) < 1 or size > len(values) or int(head["ticket"]) != ticket:
        return None
    latents = values[:size].copy()
    if _checksum(head, latents) != int(head["checksum"]):
        return None
    return int(head["step"]), latents.reshape(shape)


def _checksum(head: Any, values: Latents) -> int:
    """CRC-32 of a record without its checksum."""
    of_head = head.tobytes()[: _HEAD.fields["checksum"][1]]  # type: ignore[index]
    return zlib.crc32(values.data, zlib.crc32(of_head))


def _size(places: int, floats: int) -> int:
    return _LAYOUT.itemsize + places * RECORDS * (_HEAD.itemsize + 4 * floats)


def _records(memory: mmap.mmap, places: int, floats: int) -> tuple[Any, Latents]:
    """Heads (places, records) and values (places, records, floats)."""
    heads: Any = np.ndarray((places, RECORDS), _HEAD, memory, _LAYOUT.itemsize)
    offset = _LAYOUT.itemsize + heads.nbytes
    return heads, np.ndarray((places, RECORDS, floats), np.float32, memory, offset)

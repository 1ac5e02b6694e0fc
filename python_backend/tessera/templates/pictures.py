"""The pictures of templates, one file each, named by size and pixels."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np

from tessera.errors import InvalidInput
from tessera.requests.edit import template_id
from tessera.templates.files import age
from tessera.types import Array

_SHOWN = 20


class Pictures:
    """The pictures of one folder, which is made if it is missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, picture: Array) -> str:
        """Keep a picture (h, w, 3) of UINT8; returns its template's id."""
        identity = template_id(picture)
        path = self._path(identity)
        if path.exists():
            os.utime(path)
            return identity
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as out:
            partial = Path(out.name)
            try:
                np.save(out, picture, allow_pickle=False)
                out.flush()
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        return identity

    def get(self, identity: str) -> Array | None:
        """A template's picture, marked as used; `None` if it is not known, or no longer what it
        was.
        """
        if not identity.isalnum():
            return None
        try:
            picture: Array = np.load(self._path(identity), allow_pickle=False)
        except (OSError, ValueError):
            return None
        if template_id(picture) == identity:
            with contextlib.suppress(OSError):
                os.utime(self._path(identity))
            return picture
        self._path(identity).unlink(missing_ok=True)
        return None

    def size_of(self, identity: str) -> tuple[int, int]:
        """(height, width) of a template's picture; zero if it is not known."""
        try:
            picture = np.load(self._path(identity), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return 0, 0
        return int(picture.shape[0]), int(picture.shape[1])

    def known(self) -> list[str]:
        """Ids of all templates, the latest used first."""
        found = [(age(p), p.stem) for p in self.root.glob("*.npy")]
        return [identity for _, identity in sorted(found)]

    def _path(self, identity: str) -> Path:
        return self.root / f"{identity}.npy"

    def remove(self, identity: str) -> None:
        """Remove a template's picture."""
        self._path(identity).unlink(missing_ok=True)


def find_picture(pictures: Pictures, identity: str) -> Array:
    """A template's picture.

    Raises:
        InvalidInput: it is not known; the sentence lists the known ones.
    """
    picture = pictures.get(identity)
    if picture is None:
        raise unknown(pictures, identity)
    return picture


def unknown(pictures: Pictures, identity: str) -> InvalidInput:
    """The error for a template that is not known."""
    known = pictures.known()
    shown = ", ".join(known[:_SHOWN]) + (f" ... ({len(known)})" if len(known) > _SHOWN else "")
    accepted = f"a known template, one of {shown}" if known else "nothing, since none is known"
    return InvalidInput("TEMPLATE", identity, accepted)

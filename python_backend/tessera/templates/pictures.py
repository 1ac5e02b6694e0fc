"""The images of templates: one file each, named by a digest of size and pixels.

Knows nothing of recordings.
"""

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
"""How many template ids an error lists."""


class Pictures:
    """The template images in one folder. Creates the folder if it is missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, picture: Array) -> str:
        """Store an image (h, w, 3), UINT8, and return its template id.

        Raises:
            OSError: the disk is full or cannot be written.
        """
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
        """A template's image (h, w, 3), UINT8; marks it as used.

        Returns:
            `None` if the template is unknown or its file is damaged. A damaged file is removed.
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
        """(height, width) of a template in pixels; (0, 0) if it is unknown."""
        try:
            picture = np.load(self._path(identity), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return 0, 0
        return int(picture.shape[0]), int(picture.shape[1])

    def known(self) -> list[str]:
        """Ids of all templates, most recently used first."""
        ages = [(age(p), p.stem) for p in self.root.glob("*.npy")]
        return [identity for _, identity in sorted(ages)]

    def _path(self, identity: str) -> Path:
        return self.root / f"{identity}.npy"

    def remove(self, identity: str) -> None:
        """Remove a template's image."""
        self._path(identity).unlink(missing_ok=True)


def find_picture(pictures: Pictures, identity: str) -> Array:
    """A template's image (h, w, 3), UINT8.

    Raises:
        InvalidInput: the template is unknown. The message lists known ones.
    """
    picture = pictures.get(identity)
    if picture is None:
        raise unknown(pictures, identity)
    return picture


def unknown(pictures: Pictures, identity: str) -> InvalidInput:
    """The error for an unknown template. It lists the most recently used known ones."""
    known = pictures.known()
    shown = ", ".join(known[:_SHOWN]) + (f" ... ({len(known)})" if len(known) > _SHOWN else "")
    accepted = f"a known template, one of {shown}" if known else "a known template (none is known)"
    return InvalidInput("TEMPLATE", identity, accepted)

"""The images of templates: one file each, named by a digest of size and pixels.

Knows nothing of recordings.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tessera.errors import InvalidInput, Unavailable
from tessera.requests.edit import template_id
from tessera.templates.files import Patience, by_use, names, opened
from tessera.types import Array

_SUFFIX = ".npy"


class Pictures:
    """The template images in one folder. Creates the folder if it is missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sizes: dict[str, tuple[int, int]] = {}
        root.mkdir(parents=True, exist_ok=True)

    def put(self, picture: Array) -> tuple[str, bool]:
        """Store an image (h, w, 3), UINT8; returns its template id, and whether it is new.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        identity = template_id(picture)
        path = self._path(identity)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > picture.nbytes:  # else it has been cut off
                os.utime(path)
                return identity, False
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as out:
            partial = Path(out.name)
            try:
                np.save(out, picture, allow_pickle=False)
                out.flush()
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        return identity, True

    def get(self, identity: str) -> Array | None:
        """A template's image (h, w, 3), UINT8; marks it as used.

        Returns:
            `None` if the template is unknown or its file is damaged. A damaged file is removed.
        """
        if not identity.isalnum():
            return None
        try:
            with opened(self._path(identity)) as file:
                picture: Array = np.load(file, allow_pickle=False)
        except (ValueError, EOFError):
            self.remove(identity)
            return None
        except OSError:
            return None
        if template_id(picture) == identity:
            with contextlib.suppress(OSError):
                os.utime(self._path(identity))
            return picture
        self.remove(identity)
        return None

    def size_of(self, identity: str) -> tuple[int, int]:
        """(height, width) of a template in pixels; (0, 0) if it is unknown or damaged. Each file is
        looked into once: an id stands for a size.
        """
        if identity not in self._sizes:
            try:
                opened(self._path(identity)).close()
                picture = np.load(self._path(identity), mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError):
                return 0, 0
            self._sizes[identity] = int(picture.shape[0]), int(picture.shape[1])
        return self._sizes[identity]

    def known(self) -> list[str]:
        """Ids of all templates, most recently used first."""
        return self.by_use(self.names())

    def names(self) -> set[str]:
        """Ids of all templates."""
        return {n.removesuffix(_SUFFIX) for n in names(self.root) if n.endswith(_SUFFIX)}

    def by_use(self, identities: Iterable[str]) -> list[str]:
        """Of those ids, the ones whose images are there, most recently used first."""
        used = by_use(self.root, [f"{identity}{_SUFFIX}" for identity in identities])
        return [name.removesuffix(_SUFFIX) for _, _, name in used]

    def holds(self, identity: str) -> bool:
        """Whether a template's image is there."""
        return identity.isalnum() and self._path(identity).exists()

    def _path(self, identity: str) -> Path:
        return self.root / f"{identity}{_SUFFIX}"

    def remove(self, identity: str) -> None:
        """Remove a template's image."""
        self._path(identity).unlink(missing_ok=True)


def find_picture(pictures: Pictures, identity: str, *, patience: Patience | None = None) -> Array:
    """A template's image (h, w, 3), UINT8.

    Args:
        pictures: has it.
        identity: the template's id.
        patience: waits for the storage; without any, it takes as long as it takes.

    Raises:
        InvalidInput: the template is unknown.
        Unavailable: the storage stalls.
    """
    if patience is None:
        picture = pictures.get(identity)
    else:
        found = patience.read(lambda: (pictures.get(identity),))
        if found is None:
            raise Unavailable("the storage of templates does not answer; try again later")
        (picture,) = found
    if picture is None:
        raise unknown(identity)
    return picture


def unknown(identity: str) -> InvalidInput:
    """The error for an unknown template. It lists none: who knows an id can have the picture."""
    return InvalidInput("TEMPLATE", identity, "the id of a known template; or send IMAGE")

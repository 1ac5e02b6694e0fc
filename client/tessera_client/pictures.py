"""Pictures as callers have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tessera.types import Array

Picture = Image.Image | Array


def rgb_of(image: Picture) -> Array:
    """A picture as (h, w, 3) of UINT8; transparency is left out."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
        raise TypeError(
            f"an image is an array (h, w, 3) of uint8, not {image.shape} of {image.dtype}"
        )
    return image[..., :3]


def read_picture(file: Path) -> Image.Image:
    """The picture in a file.

    Raises:
        OSError: it cannot be read, or is none.
    """
    with Image.open(file) as picture:
        picture.load()
        return picture

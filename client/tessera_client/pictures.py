"""Pictures as callers have them: files, their content, Pillow's and numpy's, in any usual form.

What comes out is the right way up, with 8 bits a channel.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tessera.errors import brief
from tessera.types import Array
from tessera_client.checks import wrong_type

Picture = Image.Image | Array | str | os.PathLike[str] | bytes
"""A PIL image, an array of uint8 or uint16, (h, w) or (h, w, 1, 3 or 4), a file's path, or the
content of a file."""
ACCEPTED = (
    "a PIL image, an array (h, w), (h, w, 3) or (h, w, 4) of uint8 or uint16, the path of a "
    "picture's file, or a file's content as bytes"
)
_WIDE = 257
"""65535 / 255: what one of 8 bits is worth in 16."""


def picture_of(field: str, picture: Picture) -> Image.Image:
    """A picture the right way up, in one of the modes L, RGB and RGBA, with 8 bits a channel.

    A camera's orientation (EXIF) is followed. 16 bits are scaled to 8; palettes, CMYK and others
    become RGB, and RGBA where something may be transparent. Colour profiles are not followed.

    Raises:
        TypeError: it is nothing of that kind.
        ValueError: it is a file that cannot be read as a picture, or its values are no colours.
    """
    if isinstance(picture, str | os.PathLike | bytes):
        picture = _read(field, picture)
    if isinstance(picture, np.ndarray):
        return _of_array(field, picture)
    if not isinstance(picture, Image.Image):
        raise wrong_type(field, picture, ACCEPTED)
    return _eight_bits(field, ImageOps.exif_transpose(picture))


def rgb_of(field: str, picture: Picture) -> Array:
    """A picture as (h, w, 3) of UINT8; transparency is left out.

    Raises:
        TypeError, ValueError: see `picture_of`.
    """
    return np.asarray(picture_of(field, picture).convert("RGB"))


def alpha_of(picture: Image.Image) -> Array | None:
    """How opaque each pixel is, (h, w) of UINT8; `None` if the picture has no such channel."""
    return np.asarray(picture.getchannel("A")) if picture.mode == "RGBA" else None


def read_picture(file: Path) -> Image.Image:
    """The picture in a file.

    Raises:
        OSError: it cannot be read, or is none.
    """
    with Image.open(file) as picture:
        picture.load()
        return picture


def _read(field: str, picture: str | os.PathLike[str] | bytes) -> Image.Image:
    file: Any = io.BytesIO(picture) if isinstance(picture, bytes) else os.fspath(picture)
    try:
        return read_picture(file)
    except FileNotFoundError:
        problem = "which does not exist"
    except UnidentifiedImageError:
        problem = "which is no picture"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"which cannot be read ({error})"
    what = f"{len(picture)} bytes" if isinstance(picture, bytes) else brief(os.fspath(picture))
    raise ValueError(f"{field} is {what}, {problem}; accepted: {ACCEPTED}")


def _of_array(field: str, array: Array) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype == np.bool_ and array.ndim == 2:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        array = _narrow(array)
    colours = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not colours or not array.size:
        raise TypeError(f"{field} is an array {array.shape} of {array.dtype}; accepted: {ACCEPTED}")
    return Image.fromarray(array)


def _eight_bits(field: str, picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return Image.fromarray(_narrow(np.asarray(picture).astype(np.uint16)))
    if picture.mode in ("I", "F"):
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            problem = f"has the values {values.min():g} to {values.max():g} in mode {picture.mode}"
            raise ValueError(f"{field} {problem}; accepted: 8 or 16 bits a channel")
        return Image.fromarray(_narrow(values.astype(np.uint16)))
    if picture.mode in ("L", "RGB", "RGBA"):
        clear = "transparency" in picture.info
        return picture.convert("RGBA") if clear and picture.mode != "RGBA" else picture
    if picture.mode == "1":
        return picture.convert("L")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _narrow(array: Array) -> Array:
    """16 bits as 8, rounded."""
    wide = array.astype(np.uint32)
    return ((wide + _WIDE // 2) // _WIDE).astype(np.uint8)

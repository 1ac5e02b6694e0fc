"""Files of plots: few colours and no loss, which takes fewer bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

COLOURS = 48
DESCRIPTION = 270
"""The Exif tag that a file says in what it shows."""


def save(figure: Any, file: Path, *, dpi: int = 110) -> None:
    """Write a figure of matplotlib as a PNG or WebP, by the file's name."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    with Image.open(drawn) as picture:
        write(of_few_colours(picture.convert("RGB")), file)


def write(picture: Image.Image, file: Path | io.BytesIO, *, form: str = "", says: str = "") -> None:
    """Write a picture without loss.

    Args:
        picture: of few colours.
        file: where to.
        form: of the file, as Pillow names it, unless its name says so.
        says: a description, for `description_of`.
    """
    exif = Image.Exif()
    if says:
        exif[DESCRIPTION] = says
    picture.save(file, form or None, lossless=True, quality=100, method=6, optimize=True, exif=exif)


def description_of(file: Path) -> str | None:
    """What a file says that it shows; None if it says nothing."""
    with Image.open(file) as picture:
        found = picture.getexif().get(DESCRIPTION)
    return found if isinstance(found, str) else None


def of_few_colours(picture: Image.Image) -> Image.Image:
    """A picture of mode RGB with the colours of lines and its most frequent ones as they are, the
    others by the nearest of them: smoothed edges become coarser.
    """
    pixels = np.asarray(picture)  # (height, width, 3)
    colours, indices, counts = np.unique(
        pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    of_lines = np.round(255 * np.array(mpl.colormaps["tab10"](range(10)))[:, :3])
    is_line = (colours[:, None] == of_lines).all(axis=2).any(axis=1)
    palette = colours[np.lexsort((counts, is_line))[::-1][:COLOURS]]
    far = np.square(colours[:, None].astype(int) - palette).sum(axis=2)  # (colours, palette)
    nearest = far.argmin(axis=1)[indices.reshape(pixels.shape[:2])]
    few = Image.fromarray(nearest.astype(np.uint8), "P")
    few.putpalette(palette.astype(np.uint8).tobytes())
    return few

"""Before and after, and drawings of one picture, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tessera.contract import EDITED
from tessera.types import Array

_GAP, _LINE = 12, 24
_PAPER, _INK, _MARK = (250, 250, 248), (30, 30, 30), np.array([230, 40, 120])
_SMALLEST = _CELL = 256


def with_room(
    image: Image.Image, mask: Array, sides: Sequence[int] | None
) -> tuple[Image.Image, Array]:
    """An image and its mask with the room that `extend` asks for, which is marked."""
    if sides is None:
        return image, mask
    left, top, right, bottom = sides
    size = (image.width + left + right, image.height + top + bottom)
    larger = Image.new("RGB", size, _PAPER)
    larger.paste(image.convert("RGB"), (left, top))
    return larger, np.pad(mask, ((top, bottom), (left, right)), constant_values=255)


def before_and_after(
    before: Image.Image, mask: Array, after: Image.Image, title: str
) -> Image.Image:
    """One picture of three: the image, the image with its mask in colour, and the edit."""
    original = np.asarray(before.convert("RGB"))
    pictures = [original, _marked(original, mask), np.asarray(after.convert("RGB"))]
    height, width = mask.shape
    scale = max(1, -(-_SMALLEST // max(width, height)))  # small pictures are enlarged, pixels kept
    width, height = scale * width, scale * height
    size = (3 * width + 4 * _GAP, height + 2 * _LINE + 2 * _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.text((_GAP, _GAP), title, _INK, font)
    for index, (name, picture) in enumerate(
        zip(("before", "mask", "after"), pictures, strict=True)
    ):
        x = _GAP + index * (width + _GAP)
        large = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(large, (x, _GAP + _LINE))
        draw.text((x, _GAP + _LINE + height + 4), name, _INK, font)
    return sheet


def contact_sheet(
    rows: Sequence[tuple[str, Image.Image, Array, Sequence[Image.Image]]], names: Sequence[str]
) -> Image.Image:
    """Rows of a picture with its mask in colour, two drawings of it, and how they differ.

    Args:
        rows: title, picture, mask (h, w), and the two drawings of each.
        names: of the three columns beside the picture.
    """
    columns = 2 + len(names) - 1
    width, height = columns * (_CELL + _GAP) + _GAP, len(rows) * (_CELL + _LINE + _GAP) + _LINE
    sheet = Image.new("RGB", (width, height + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, name in enumerate(("picture and mask", *names)):
        draw.text((_GAP + column * (_CELL + _GAP), _GAP // 2), name, _INK, font)
    for row, (title, picture, mask, drawings) in enumerate(rows):
        top = _LINE + row * (_CELL + _LINE + _GAP)
        original = np.asarray(picture.convert("RGB"))
        one, other = (np.asarray(drawing.convert("RGB"), np.int16) for drawing in drawings)
        apart = (4 * np.abs(one - other)).clip(0, 255)
        for column, cell in enumerate((_marked(original, mask), one, other, apart)):
            small = _fitted(Image.fromarray(cell.astype(np.uint8)))
            sheet.paste(small, (_GAP + column * (_CELL + _GAP), top))
        draw.text((_GAP, top + _CELL + 4), title, _INK, font)
    return sheet


def _marked(picture: Array, mask: Array) -> Array:
    mixed: Array = np.where(mask[..., None] >= EDITED, 0.45 * picture + 0.55 * _MARK, picture)
    return mixed.astype(np.uint8)


def _fitted(picture: Image.Image) -> Image.Image:
    """A picture in a cell of the sheet; small ones are enlarged, pixels kept."""
    scale = _CELL / max(picture.size)
    size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return picture.resize(size, how)

"""Before and after, side by side."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tessera.contract import EDITED
from tessera.types import Array

_GAP, _LINE = 12, 24
_PAPER, _INK, _MARK = (250, 250, 248), (30, 30, 30), np.array([230, 40, 120])
_SMALLEST = 256


def before_and_after(
    before: Image.Image, mask: Array, after: Image.Image, title: str
) -> Image.Image:
    """One picture of three: the image, the image with its mask in colour, and the edit."""
    original = np.asarray(before.convert("RGB"))
    marked = np.where(mask[..., None] >= EDITED, 0.45 * original + 0.55 * _MARK, original)
    pictures = [original, marked.astype(np.uint8), np.asarray(after.convert("RGB"))]
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

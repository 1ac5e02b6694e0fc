"""Contact sheets: images with captions on one page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_GAP, _TEXT, _LINES = 12, 12, 3
_PAPER, _INK, _FAINT = (250, 249, 246), (30, 30, 30), (110, 110, 110)


@dataclass(frozen=True)
class Tile:
    """An image with a caption below it and a fainter last line."""

    image: Image.Image
    caption: str
    note: str = ""


def sheet(title: str, tiles: Sequence[Tile], *, columns: int, side: int = 192) -> Image.Image:
    """Tiles in rows from the top left, with each image scaled to fit a square of `side` pixels."""
    font = ImageFont.load_default(_TEXT)
    line = _TEXT + 3
    cell_height = side + (_LINES + 1) * line + _GAP
    rows = -(-len(tiles) // columns)
    top = 3 * _GAP + _TEXT
    page = Image.new(
        "RGB", (columns * (side + _GAP) + _GAP, top + rows * (cell_height + _GAP)), _PAPER
    )
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, _GAP), title, _INK, ImageFont.load_default(_TEXT + 4))
    for i, tile in enumerate(tiles):
        x, y = _GAP + i % columns * (side + _GAP), top + i // columns * (cell_height + _GAP)
        scale = side / max(tile.image.size)
        size = (round(tile.image.width * scale), round(tile.image.height * scale))
        page.paste(tile.image.resize(size, Image.Resampling.LANCZOS), (x, y))
        lines = textwrap.wrap(tile.caption, round(side / _TEXT * 1.9))[:_LINES]
        for number, text in enumerate(lines):
            draw.text((x, y + side + 4 + number * line), text, _INK, font)
        draw.text((x, y + side + 4 + len(lines) * line), tile.note, _FAINT, font)
    return page

"""Contact sheets: many pictures in one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tessera_build.demo.draw import Picture

_GAP = 4


def contact_sheet(pictures: Sequence[Picture], *, columns: int) -> Image.Image:
    """Pictures (h, w, 3) in 0..1, all of one size, in rows from the top left."""
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    sheet = Image.new(
        "RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), (32, 32, 32)
    )
    for i, picture in enumerate(pictures):
        tile = Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))
        sheet.paste(
            tile, (_GAP + i % columns * (width + _GAP), _GAP + i // columns * (height + _GAP))
        )
    return sheet

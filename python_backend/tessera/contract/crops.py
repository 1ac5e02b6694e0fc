"""Which part of a picture an edit draws: workers cut it, and routers weigh it. Standard library
only, of Python 3.10.
"""

from __future__ import annotations

from tessera.contract import SIZE_STEP

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


def filled(side: int, least: int = 0) -> int:
    """What a side of so many pixels is filled up to."""
    return -(-max(side, least) // SIZE_STEP) * SIZE_STEP


def crop_around(
    bounds: Box, padding: int, picture: tuple[int, int], working: tuple[int, int]
) -> Box:
    """Edited pixels and some around them, grown to a shape as far as the picture allows: diffusers'
    `VaeImageProcessor.get_crop_region`.

    Args:
        bounds: around the edited pixels.
        padding: pixels around these.
        picture: its (width, height).
        working: (width, height) that the crop is brought to.
    """
    left, top, right, bottom = bounds
    width, height = picture
    left, right = max(left - padding, 0), min(right + padding, width)
    top, bottom = max(top - padding, 0), min(bottom + padding, height)
    shape = working[0] / working[1]
    if (right - left) / (bottom - top) > shape:
        top, bottom = _grown(top, bottom, int((right - left) / shape), height)
    else:
        left, right = _grown(left, right, int((bottom - top) * shape), width)
    return left, top, right, bottom


def _grown(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """An interval around the same middle, of that length as far as it is inside 0 to `limit`."""
    more = length - (end - start)
    start, end = start - more // 2, end + more - more // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, min(end - start, limit)
    return start, end

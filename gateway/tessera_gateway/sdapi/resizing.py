"""Pictures at another size, by the numbers of `resize_mode`."""

from __future__ import annotations

from PIL import Image, ImageOps

STRETCH, CROP, FILL = 0, 1, 2
"""To the size as it is; cut to its shape; whole, the rest filled with the colours of its edges."""
_SMOOTH = Image.Resampling.LANCZOS


def resized(picture: Image.Image, size: tuple[int, int], mode: int) -> Image.Image:
    """A picture, or a mask, at a size (width, height)."""
    if picture.size == size:
        return picture
    if mode == CROP:
        return ImageOps.fit(picture, size, _SMOOTH)
    if mode == FILL:
        return _filled(picture.resize(_inside(picture.size, size), _SMOOTH), size)
    return picture.resize(size, _SMOOTH)


def _inside(size: tuple[int, int], limits: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same shape within limits; no side is without pixels."""
    scale = min(limits[0] / size[0], limits[1] / size[1])
    width, height = (max(1, round(side * scale)) for side in size)
    return min(width, limits[0]), min(height, limits[1])


def _filled(inner: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture in the middle of a larger one; its first and last rows or columns go on."""
    width, height = size
    left, top = (width - inner.width) // 2, (height - inner.height) // 2
    whole = Image.new(inner.mode, size)
    right, bottom = left + inner.width, top + inner.height
    if top or bottom < height:
        above = inner.crop((0, 0, inner.width, 1)).resize((inner.width, max(top, 1)))
        below = inner.crop((0, inner.height - 1, inner.width, inner.height))
        whole.paste(above, (left, 0))
        whole.paste(below.resize((inner.width, max(height - bottom, 1))), (left, bottom))
    if left or right < width:
        before = inner.crop((0, 0, 1, inner.height)).resize((max(left, 1), inner.height))
        behind = inner.crop((inner.width - 1, 0, inner.width, inner.height))
        whole.paste(before, (0, top))
        whole.paste(behind.resize((max(width - right, 1), inner.height)), (right, top))
    whole.paste(inner, (left, top))
    return whole

"""Edits of pictures that are larger than the server draws: what of a picture is sent, and the
drawing put back into it. Sizes that are no multiples of 8 are the server's affair.

Pixels outside the mask stay those of the picture, bit for bit, in each of the ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from tessera.contract import EDITED
from tessera.contract.limits import FEATHER
from tessera.feather import pasted, width_of
from tessera.types import Array

PAD, CROP, SCALE = "pad", "crop", "scale"
RESIZES = (PAD, CROP, SCALE)
"""Values of an edit's `resize`; the first is the default."""
_SMOOTH, _MEAN = Image.Resampling.LANCZOS, Image.Resampling.BOX

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


class Limits(Protocol):
    """Of a picture's sides, in pixels; a `ServedBundle` has them."""

    @property
    def max_size(self) -> int:
        """The longest."""
        ...


@dataclass(frozen=True, eq=False)
class Frame:
    """What of a picture is drawn, and how it is put back.

    Attributes:
        size: (width, height) of the whole picture.
        box: the part that is drawn.
        scaled: (width, height) that this part is brought to.
    """

    size: tuple[int, int]
    box: Box
    scaled: tuple[int, int]

    @property
    def whole(self) -> bool:
        """Whether the picture is sent as it is."""
        return self.scaled == self.size

    def shown(self, picture: Array) -> Array:
        """A picture, or its control image, as it is sent: (h, w, 3) of UINT8."""
        return np.asarray(self._part(picture).resize(self.scaled, _SMOOTH))

    def masked(self, mask: Array, *, soft: bool = False) -> Array:
        """A mask as it is sent, (h, w): a pixel that any edited one falls on is edited. A `soft`
        one has the mean of their strengths.
        """
        small = np.asarray(self._part(hard(mask, soft=soft)).resize(self.scaled, _MEAN))
        edited = np.where(small > 0, np.uint8(255), np.uint8(0))
        if soft:
            means = np.asarray(self._part(mask).resize(self.scaled, _MEAN))
            edited = np.where(small > 0, np.maximum(means, 1), np.uint8(0))
        return edited

    def put_back(
        self, drawing: Image.Image, picture: Array, mask: Array, feather: int = FEATHER
    ) -> Image.Image:
        """The picture with the drawing in it.

        Args:
            drawing: what the server drew.
            picture: (h, w, 3), whole.
            mask: (h, w), whole and hard.
            feather: drawn pixels within which the drawing itself fades in. A scaled one fades in
                again within as many, but `FEATHER` at most.
        """
        left, top, right, bottom = self.box
        part = drawing.convert("RGB").crop((0, 0, *self.scaled))
        whole = picture.copy()
        here = whole[top:bottom, left:right]
        size = (right - left, bottom - top)
        edited = mask[top:bottom, left:right] >= EDITED
        new = np.asarray(part.resize(size, _SMOOTH))
        if self.scaled == size:
            here[edited] = new[edited]
        else:
            width = width_of(min(feather, FEATHER), size[0] / self.scaled[0])
            here[:] = pasted(new, here, edited, width)
        return Image.fromarray(whole)

    def _part(self, picture: Array) -> Image.Image:
        left, top, right, bottom = self.box
        return Image.fromarray(np.ascontiguousarray(picture[top:bottom, left:right]))


def hard(mask: Array, *, soft: bool) -> Array:
    """Where a mask (h, w) edits at all: 255, and 0 elsewhere."""
    return np.where(mask >= (1 if soft else EDITED), np.uint8(255), np.uint8(0))


def needs_limits(resize: str) -> bool:
    """Whether a frame depends on what the server's limits are."""
    return resize != PAD


def whole_frame(size: tuple[int, int]) -> Frame:
    """A picture as it is."""
    return Frame(size, (0, 0, *size), size)


def frame_of(mask: Array, resize: str, limits: Limits) -> Frame:
    """How an edit's picture becomes one that is not too large.

    Args:
        mask: (h, w), hard.
        resize: `crop` sends no more of a large picture than the largest size, around the mask;
            `scale` sends all of it, smaller; `pad` leaves it to the server, which fills up its
            sides to multiples of 8 pixels and rejects large ones.
        limits: the server's.

    Raises:
        ValueError: the mask is too large to be cropped to.
    """
    height, width = mask.shape
    size = (width, height)
    if max(size) <= limits.max_size or resize == PAD:
        return whole_frame(size)
    if resize == CROP:
        left, top, right, bottom = _around(mask, limits.max_size)
        return Frame(size, (left, top, right, bottom), (right - left, bottom - top))
    factor = limits.max_size / max(size)
    scaled = (max(1, round(factor * width)), max(1, round(factor * height)))
    return Frame(size, (0, 0, width, height), scaled)


def _around(mask: Array, most: int) -> Box:
    """A part of at most so many pixels a side, with the mask in its middle."""
    edited = mask >= EDITED
    columns, rows = np.flatnonzero(edited.any(0)), np.flatnonzero(edited.any(1))
    left, right = _interval(columns, edited.shape[1], most)
    top, bottom = _interval(rows, edited.shape[0], most)
    return left, top, right, bottom


def _interval(edited: Array, length: int, most: int) -> tuple[int, int]:
    if length <= most or not edited.size:
        return 0, min(length, most)
    first, last = int(edited[0]), int(edited[-1]) + 1
    if last - first > most:
        raise ValueError(
            f"the mask is {last - first} pixels long, and resize is 'crop'; "
            f"accepted: a mask of up to {most} pixels, or resize scale"
        )
    start = min(max((first + last - most) // 2, 0), length - most)
    return start, start + most

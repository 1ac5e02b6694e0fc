"""What of a picture is drawn, and how the drawing is put back: crops, enlarged or not, pictures
filled up to accepted sizes, and pictures that are extended.

Pixels outside the mask stay those of the picture, bit for bit. Knows arrays, nothing of inputs. The
`edit` model uses it, so it imports no networks, and Pillow only where something is scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tessera.contract import EDITED, SIZE_STEP
from tessera.contract.crops import Box, crop_around, filled
from tessera.contract.limits import FEATHER
from tessera.feather import pasted, width_of
from tessera.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
"""(width, height), in pixels."""
Sides = tuple[int, int, int, int]
"""Pixels at the left, at the top, at the right, at the bottom."""


@dataclass(frozen=True)
class Frame:
    """What of a picture is drawn.

    Attributes:
        box: the part of the picture.
        scaled: what this part is brought to.
        drawn: what is drawn: the scaled part, filled up by reflection.
        offset: (x, y) of the scaled part in it.
    """

    box: Box
    scaled: Size
    drawn: Size
    offset: tuple[int, int] = (0, 0)

    @property
    def enlarges(self) -> bool:
        """Whether drawn pixels are smaller than the picture's."""
        return self.scaled[0] > self.box[2] - self.box[0]

    @property
    def scales(self) -> bool:
        """Whether drawn pixels are larger or smaller than the picture's."""
        left, top, right, bottom = self.box
        return self.scaled != (right - left, bottom - top)

    def shown(self, picture: Array) -> Array:
        """What is drawn of a picture, or of its control image: (h, w, 3) of UINT8."""
        part = self._part(picture)
        return self._filled_up(_resized(part, self.scaled) if self.scales else part)

    def masked(self, mask: Array, *, soft: bool) -> Array:
        """What is drawn of a mask (h, w) of UINT8.

        An enlarged mask is scaled as the picture, and cut at `EDITED`, as in diffusers. In one that
        is made smaller, or of which nothing would be left, a pixel is edited if any is that falls
        on it.
        """
        part = self._part(mask)
        if self.scales:
            values = part if soft else np.where(part >= EDITED, np.uint8(255), np.uint8(0))
            scaled = _resized(values, self.scaled)
            if not soft:
                scaled = np.where(scaled >= EDITED, np.uint8(255), np.uint8(0))
            whole = self.enlarges and scaled.any()
            part = scaled if whole else _with_any(scaled, values, soft=soft)
        return self._filled_up(part)

    def put_back(
        self, drawing: Array, picture: Array, edited: Array, feather: int = FEATHER
    ) -> Array:
        """The picture with the drawing in it.

        Args:
            drawing: (h, w, 3), of the size that was drawn.
            picture: (h, w, 3), whole.
            edited: (h, w), whole; the picture may change where it is not 0.
            feather: drawn pixels within which the drawing itself fades in. A scaled one fades in
                again within as many, but `FEATHER` at most.
        """
        left, top, right, bottom = self.box
        x, y = self.offset
        part = drawing[y : y + self.scaled[1], x : x + self.scaled[0]]
        whole = picture.copy()
        here, inside = whole[top:bottom, left:right], edited[top:bottom, left:right] > 0
        if not self.scales:
            here[inside] = part[inside]
            return whole
        size = (right - left, bottom - top)
        width = width_of(min(feather, FEATHER), size[0] / self.scaled[0])
        here[:] = pasted(_resized(part, size), here, inside, width)
        return whole

    def _part(self, picture: Array) -> Array:
        left, top, right, bottom = self.box
        return picture[top:bottom, left:right]

    def _filled_up(self, part: Array) -> Array:
        """A picture or a mask by reflection. A mask that ends at the picture's edge goes on, so
        that the edit does not fade there.
        """
        before = (self.offset[1], self.offset[0])
        after = [self.drawn[1 - i] - part.shape[i] - before[i] for i in range(2)]
        room = [*zip(before, after, strict=True), (0, 0)][: part.ndim]
        return np.pad(part, room, "symmetric")


def filled_frame(size: Size, least: int) -> Frame:
    """All of a picture, filled up at the right and below to multiples of 8 and to `least`."""
    drawn = (filled(size[0], least), filled(size[1], least))
    return Frame((0, 0, *size), size, drawn)


def cropped_frame(edited: Array, padding: int, working: Size) -> Frame:
    """The neighbourhood of a mask, brought to a working size.

    Args:
        edited: (h, w), not 0 where to edit; somewhere it is.
        padding: pixels around the mask.
        working: the size to draw.
    """
    box = crop_region(edited, padding, working)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(working[0] / width, working[1] / height)
    scaled = tuple(
        min(most, max(1, round(scale * side)))
        for side, most in zip((width, height), working, strict=True)
    )
    offset = tuple((most - side) // 2 for side, most in zip(scaled, working, strict=True))
    return Frame(box, (scaled[0], scaled[1]), working, (offset[0], offset[1]))


def crop_region(edited: Array, padding: int, working: Size) -> Box:
    """The edited pixels and `padding` around them, grown to the shape of `working` as far as the
    picture allows: diffusers' `VaeImageProcessor.get_crop_region`.
    """
    height, width = edited.shape
    columns, rows = np.flatnonzero(edited.any(0)), np.flatnonzero(edited.any(1))
    bounds = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return crop_around(bounds, padding, (width, height), working)


def working_size(size: Size, low: int, high: int) -> Size:
    """What a crop is enlarged to if nobody says: the picture's size, made smaller in its shape
    where that is beyond `high`, in multiples of 8.
    """
    scale = min(1.0, high / max(size))
    width, height = (max(int(scale * side) // SIZE_STEP * SIZE_STEP, low) for side in size)
    return width, height


def extended(picture: Array, masks: Array, sides: Sides) -> tuple[Array, Array]:
    """A picture (h, w, 3) with room around it, which is filled by reflection, and its masks (n, h,
    w), in the first of which that room is edited.
    """
    left, top, right, bottom = sides
    room = ((top, bottom), (left, right))
    larger = np.pad(picture, (*room, (0, 0)), "symmetric")
    wider = np.pad(masks, ((0, 0), *room))
    wider[0] = np.pad(masks[0], room, constant_values=255)
    return larger, wider


def _resized(picture: Array, size: Size) -> Array:
    from PIL.Image import Resampling

    return np.asarray(_image(picture).resize(size, Resampling.LANCZOS))


def _with_any(scaled: Array, values: Array, *, soft: bool) -> Array:
    """A scaled mask, with every pixel that any edited one falls on."""
    rows = np.stack([values[of].any(0) for of in _spans(values.shape[0], scaled.shape[0])])
    columns = _spans(values.shape[1], scaled.shape[1])
    small = np.stack([rows[:, of].any(1) for of in columns], 1)
    return np.where(small, np.maximum(scaled, 1 if soft else 255), 0).astype(np.uint8)


def _spans(before: int, after: int) -> list[slice]:
    """Which pixels of a side fall on each of the scaled one."""
    return [slice(i * before // after, -(-(i + 1) * before // after)) for i in range(after)]


def _image(array: Array) -> Image:
    from PIL.Image import fromarray

    return fromarray(np.ascontiguousarray(array))

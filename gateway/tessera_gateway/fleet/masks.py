"""Which part of a picture an edit may change, and how many latents that are on a worker.

A router keeps of a mask which squares of a few pixels it touches: kilobytes instead of megabytes.
`tessera.requests.framing` in the runtime is what workers do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.contract import EDITED
from tessera.contract.crops import Box, crop_around, filled
from tessera_gateway.fleet.wire import Tensor

SIDE = 4
"""Pixels of a square, the smallest that a latent covers."""

LARGEST = 2**24
"""Pixels of a picture with the room around it that are looked at; a router does not take the time
for more.
"""

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Edited:
    """What an edit may change.

    Attributes:
        width, height: of the picture with the room around it, in pixels.
        share: of its pixels that may change, once it is filled up.
        bounds: the box around them.
        squares: which squares have any, row by row, eight in a byte.
    """

    width: int
    height: int
    share: float
    bounds: Box
    squares: bytes

    @property
    def touched(self) -> Bools:
        """The squares (rows, columns). Sides are filled up to multiples of `SIZE_STEP`."""
        rows, columns = (filled(side) // SIDE for side in (self.height, self.width))
        bits = np.unpackbits(np.frombuffer(self.squares, np.uint8), count=rows * columns)
        return bits.reshape(rows, columns).astype(np.bool_)


def check_room(shape: Sequence[int], room: Box) -> None:
    """See whether a picture (h, w) with that room around it is looked at.

    Raises:
        ValueError: it is too large.
    """
    left, top, right, bottom = room
    if (shape[0] + top + bottom) * (shape[1] + left + right) > LARGEST:
        raise ValueError(f"more than {LARGEST} pixels")


def edited_of(tensors: Mapping[str, Tensor], *, soft: bool, room: Box | None) -> Edited | None:
    """What an edit may change; `None` if its bytes do not say.

    Args:
        tensors: its inputs by name.
        soft: whether its masks say how strongly.
        room: EXTEND: pixels at the left, top, right and bottom.

    Raises:
        ValueError: a mask is not as long as its shape says, or the picture is too large.
    """
    edited = _masked(tensors, 1 if soft else EDITED, outside=room is not None)
    if edited is None or not edited.size:
        return None
    if room is not None:
        left, top, right, bottom = room
        check_room(edited.shape, room)
        edited = np.pad(edited, ((top, bottom), (left, right)), constant_values=True)
    height, width = edited.shape
    rows, columns = np.flatnonzero(edited.any(1)), np.flatnonzero(edited.any(0))
    if not rows.size:
        return Edited(width, height, 0.0, (0, 0, width, height), b"")
    bounds = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    edited = _filled_up(edited)
    share = float(np.count_nonzero(edited)) / edited.size
    return Edited(width, height, share, bounds, np.packbits(_squares(edited)).tobytes())


def _masked(tensors: Mapping[str, Tensor], least: int, *, outside: bool) -> Bools | None:
    """The pixels (h, w) of MASK and of all regions; all of the image, or none of it if only the
    room outside is edited.
    """
    masks = {
        name: np.frombuffer(tensor.data, np.uint8).reshape(-1, *tensor.shape[-2:])
        for name in ("MASK", "REGION_MASKS")
        if (tensor := tensors.get(name)) is not None and tensor.data
    }
    image = tensors.get("IMAGE")
    if "MASK" in masks:
        found: Bools = masks["MASK"][0] >= least
    elif "MASK" in tensors or image is None or len(image.shape) != 4:
        return None
    else:
        check_room(image.shape[1:3], (0, 0, 0, 0))  # its shape may say more than its bytes
        found = np.full(image.shape[1:3], not outside)
    for mask in masks.get("REGION_MASKS", ()):
        if mask.shape != found.shape:
            raise ValueError("masks of different sizes")
        found = found | (mask >= least)
    return found


def _filled_up(edited: Bools) -> Bools:
    """Pixels (h, w) by reflection, as workers fill pictures and masks up."""
    height, width = edited.shape
    room = ((0, filled(height) - height), (0, filled(width) - width))
    return np.pad(edited, room, "symmetric") if room[0][1] or room[1][1] else edited


def _squares(edited: Bools) -> Bools:
    """Which squares (h / SIDE, w / SIDE) of pixels (h, w) have any that are edited."""
    across = np.ascontiguousarray(edited).view(np.uint32) != 0  # SIDE pixels are one number
    found: Bools = across.reshape(-1, SIDE, across.shape[1]).any(1)
    return found


@dataclass(frozen=True)
class Drawn:
    """What of a picture is drawn.

    Attributes:
        width, height: in pixels.
        box: the part of the picture; `None` for all of it.
    """

    width: int
    height: int
    box: Box | None = None


def cropped(edited: Edited, padding: int, width: int, height: int) -> Drawn:
    """A crop around the mask, brought to a size, as workers cut it."""
    picture = (edited.width, edited.height)
    return Drawn(width, height, crop_around(edited.bounds, padding, picture, (width, height)))


@lru_cache(4096)
def active(edited: Edited, drawn: Drawn, pixels: int, margin: int) -> int:
    """How many latents a sparse step computes.

    Args:
        edited: what may change.
        drawn: what is drawn.
        pixels: of a latent, on a side.
        margin: latents around these that are computed, too.
    """
    mask = _latents(edited, drawn, pixels)
    for _ in range(margin):
        for axis in (0, 1):
            grown = mask.copy()
            first, last = (slice(None, -1), slice(1, None))
            there, here = (
                (first, last) if axis == 0 else ((slice(None), first), (slice(None), last))
            )
            grown[here] |= mask[there]
            grown[there] |= mask[here]
            mask = grown
    return int(np.count_nonzero(mask))


@lru_cache(256)
def _latents(edited: Edited, drawn: Drawn, pixels: int) -> Bools:
    """Which latents (h, w) may change."""
    touched = edited.touched
    height, width = drawn.height // pixels, drawn.width // pixels
    if drawn.box is None:
        each = max(1, pixels // SIDE)
        found: Bools = np.zeros((height, width), np.bool_)
        tall, wide = min(height, touched.shape[0] // each), min(width, touched.shape[1] // each)
        part = touched[: tall * each, : wide * each].reshape(tall, each, wide, each)
        found[:tall, :wide] = part.any((1, 3))
        return found
    left, top, right, bottom = drawn.box
    scale = min(drawn.width / (right - left), drawn.height / (bottom - top))
    rows = _spans(top, bottom, height, pixels / scale, edited.bounds[1::2])
    columns = _spans(left, right, width, pixels / scale, edited.bounds[::2])
    sums = np.pad(touched.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    here = np.ix_
    counts = (
        sums[here(rows[1], columns[1])]
        - sums[here(rows[0], columns[1])]
        - sums[here(rows[1], columns[0])]
        + sums[here(rows[0], columns[0])]
    )
    inside: Bools = counts > 0
    return inside


def _spans(start: int, end: int, count: int, pixels: float, bounds: tuple[int, ...]) -> Integers:
    """Of each latent of a crop along an axis, the first square that it covers and the one behind
    the last (2, count); what is beyond the crop is its reflection, as in a worker's.

    Args:
        start: of the crop, in pixels.
        end: of the crop, in pixels.
        count: latents.
        pixels: of the picture that a latent covers.
        bounds: of what may change.
    """
    length = end - start
    first: Floats = (np.arange(count) - count / 2) * pixels + length / 2
    first -= np.floor((first + pixels / 2) / (2 * length)) * 2 * length
    mirrored = first + pixels / 2 > length
    places: Any = start + np.where(mirrored, 2 * length - first - pixels, first)
    near: Floats = places.clip(bounds[0], bounds[1])
    far: Floats = (places + pixels).clip(bounds[0], bounds[1])
    spans: Floats = np.stack([np.floor(near / SIDE), np.ceil(far / SIDE)])
    spans[1] = np.where(far - near < 1e-6, spans[0], spans[1])  # none of what may change
    found: Integers = spans.astype(np.int64)
    return found

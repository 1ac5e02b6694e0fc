"""How a drawing fades into a picture, inwards from the border of what may change.

Knows arrays, nothing of requests or networks. Server and client use it, so it needs numpy only, and
Python 3.10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.types import Array

WIDEST = 255
"""Largest width of a fade, in pixels."""
_ROWS = 256
"""How many rows are pasted at a time, so that floats are never needed for a whole large picture."""


def width_of(feather: int, factor: float) -> int:
    """Pixels of a picture that a fade over `feather` drawn pixels is wide, from 1 to `WIDEST`.

    Args:
        feather: in drawn pixels.
        factor: pixels of the picture, on a side, that a drawn one covers.
    """
    return min(max(1, round(feather * factor)), WIDEST)


def depth_inside(inside: Array, most: int) -> npt.NDArray[np.uint8]:
    """How many pixels each is inside (h, w), UINT8, up to `most`: 0 outside, 1 at the border.

    Diagonal neighbours count as neighbours. The edge of the picture is no border.

    Args:
        inside: (h, w), boolean.
        most: from 1 to `WIDEST`.
    """
    depth = np.where(inside, np.uint8(most), np.uint8(0))
    known = 0  # depths up to this are right, larger ones are `most` yet
    while known < most - 1:
        step = min(known + 1, most - 1 - known)
        around = _in_both_directions(np.minimum, depth, step, most)
        depth = np.minimum(depth, np.minimum(around, most - step) + np.uint8(step))
        known += step
    return depth


def share_of_drawing(inside: Array, width: int, dtype: Any = np.float64) -> Array:
    """The drawing's share of each pixel (h, w): 0 outside, rising to 1 within `width` pixels of the
    border. Where there is too little room for that, it rises to 1 in the middle.

    Args:
        inside: (h, w), boolean.
        width: from 1 to `WIDEST`.
        dtype: of the shares.
    """
    depth = depth_inside(inside, width)
    deepest = _in_both_directions(np.maximum, depth, width - 1, 0)
    share: Array = depth.astype(dtype) / np.maximum(deepest, 1).astype(dtype)
    return share


def pasted(
    drawing: Array, picture: Array, inside: Array, width: int, dtype: Any = np.float64
) -> npt.NDArray[np.uint8]:
    """A picture with a drawing in it, which fades in over `width` pixels from the border.

    Outside, the pixels are the picture's, bit for bit.

    Args:
        drawing: (h, w, 3), UINT8.
        picture: (h, w, 3), UINT8.
        inside: (h, w), boolean: where the drawing is put.
        width: from 1 to `WIDEST`.
        dtype: that pixels are mixed in.
    """
    found = np.empty_like(picture)
    room = 2 * (width - 1)  # from there on, no pixel changes a share
    for top in range(0, len(picture), _ROWS):
        rows = slice(top, top + _ROWS)
        first = max(top - room, 0)
        near = share_of_drawing(inside[first : top + _ROWS + room], width, dtype)
        share = near[top - first :][: len(picture[rows]), :, None]
        found[rows] = (share * drawing[rows] + (1 - share) * picture[rows]).round()
    return found


def _in_both_directions(of: Any, values: Array, reach: int, neutral: int) -> Array:
    """The least or largest of values (h, w) within `reach` pixels of each, diagonals included.

    Args:
        of: `np.minimum` or `np.maximum`.
        values: (h, w).
        reach: in pixels.
        neutral: the value outside the picture.
    """
    values = _down(of, values, reach, neutral)
    return _down(of, values.T, reach, neutral).T


def _down(of: Any, values: Array, reach: int, neutral: int) -> Array:
    """The same of each column alone. What two windows have found is what one twice as long has."""
    window = 2 * reach + 1
    found = np.pad(values, ((reach, reach), (0, 0)), constant_values=neutral)
    length = 1
    while length < window:
        step = min(length, window - length)
        found = of(found[:-step], found[step:])
        length += step
    return found

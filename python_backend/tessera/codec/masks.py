"""Masks of pixels: which latents they make active, and how an edit is pasted into the template.

Knows arrays, nothing of requests, engines or Triton.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import avg_pool2d, max_pool2d

from tessera.contract import EDITED
from tessera.contract.limits import FEATHER as FEATHER
from tessera.feather import depth_inside, pasted
from tessera.types import Array

RING = 4
"""Pixels on each side of the border whose colours are compared by `toned`."""
TONE = 24
"""How far inside the border colours are changed by `toned`, and how far away they are compared."""
_WHOLE = 255
"""The strength of a pixel that is edited fully."""


def active_latents(mask: Array, pixels: int) -> npt.NDArray[np.uint8]:
    """1 for every latent (h, w) with at least one pixel to edit, else 0.

    Args:
        mask: (h * pixels, w * pixels), UINT8.
        pixels: side of the square of pixels that one latent covers.
    """
    height, width = mask.shape
    squares = (mask >= EDITED).reshape(height // pixels, pixels, width // pixels, pixels)
    return squares.any((1, 3)).astype(np.uint8)


def sampled(mask: Array, pixels: int) -> npt.NDArray[np.bool_]:
    """A mask at the size of latents (h, w), true where it edits: the first pixel of each square, as
    diffusers' inpainting pipelines take it.
    """
    found: npt.NDArray[np.bool_] = mask[::pixels, ::pixels] >= EDITED
    return found


def latent_strengths(strengths: Array, pixels: int) -> npt.NDArray[np.float32]:
    """The strength of each latent (h, w), FP32: a soft mask resized bilinearly, as differential
    diffusion's published code does it.

    Where a square of pixels holds 0 and 255 alone, it is 255 if any is: such a mask means what a
    hard one does. Where the resized mask has nothing of some pixels to edit, it is 1.

    Args:
        strengths: (h * pixels, w * pixels), UINT8.
        pixels: side of the square of pixels that one latent covers.
    """
    height, width = strengths.shape
    squares = strengths.reshape(height // pixels, pixels, width // pixels, pixels)
    middle = slice((pixels - 1) // 2, pixels // 2 + 1)
    resized = squares[:, middle, :, middle].mean((1, 3), dtype=np.float32)
    any_edited = squares.any((1, 3))
    hard = ((squares == 0) | (squares == _WHOLE)).all((1, 3))
    found: Array = np.where(hard, np.float32(_WHOLE), np.maximum(resized, 1)) * any_edited
    return found


def prompt_weights(owners: Array, mask: Array, count: int, pixels: int) -> Array:
    """How much each prompt counts in a latent (count, h, w), FP32: its share of the latent's edited
    pixels. Where there are none, the first counts alone.

    Args:
        owners: (h * pixels, w * pixels), the number of the prompt of each pixel.
        mask: of that shape, UINT8.
        count: of the prompts.
        pixels: side of the square of pixels that one latent covers.
    """
    height, width = mask.shape
    shape = (-1, height // pixels, pixels, width // pixels, pixels)
    mine = (owners == np.arange(count)[:, None, None]) & (mask >= EDITED)
    pixels_of_each = mine.reshape(shape).sum((2, 4)).astype(np.float32)
    total = pixels_of_each.sum(0)
    pixels_of_each[0] += total == 0
    weights: Array = pixels_of_each / np.maximum(total, 1)
    return weights


def toned(edited: Array, template: Array, mask: Array) -> Array:
    """An edit (h, w, 3), UINT8, with the colours that are around the mask near its border.

    The mean colours on both sides of the border are compared in the neighbourhood of each pixel.
    Their difference is added at the border, and less and less of it within `TONE` pixels. Where
    there is nothing outside, as at the picture's edge, nothing is added.

    Args:
        edited: (h, w, 3), UINT8.
        template: (h, w, 3), UINT8.
        mask: (h, w), UINT8.
    """
    depth = torch.from_numpy(depth_inside(mask >= EDITED, TONE)).float()[None]
    inside = depth > 0
    ring = inside & (depth <= RING)
    around = (_in_both_directions(max_pool2d, inside.float(), RING) > 0) & ~inside
    outer, there = _local_mean(template, around)
    inner, here = _local_mean(edited, ring)
    fading = (TONE - depth).clamp(min=0) / (TONE - 1) * (inside & there & here)
    pixels = _channels(edited) + fading * (outer - inner)
    found: Array = pixels.clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    return found


def _local_mean(picture: Array, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean colours (3, h, w) of those pixels that lie `where` (1, h, w), within `TONE` pixels of
    each; and whether there are any.
    """
    chosen = where.float()
    share = _in_both_directions(avg_pool2d, chosen, TONE)
    total = _in_both_directions(avg_pool2d, _channels(picture) * chosen, TONE)
    return total / share.clamp(min=1e-9), share > 0


def _in_both_directions(pool: Any, maps: torch.Tensor, reach: int) -> torch.Tensor:
    """Pool maps (n, h, w) over squares, whose sides are taken one after the other: much less
    work.
    """
    side = 2 * reach + 1
    rows = pool(maps, (side, 1), 1, (reach, 0))
    pooled: torch.Tensor = pool(rows, (1, side), 1, (0, reach))
    return pooled


def _channels(picture: Array) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)


def paste(edited: Array, template: Array, mask: Array, width: int = FEATHER) -> Array:
    """Paste an edit into the template through the feathered mask; returns (h, w, 3), UINT8.

    Outside the mask the pixels equal the template's bit for bit.

    Args:
        edited: (h, w, 3), UINT8.
        template: (h, w, 3), UINT8.
        mask: (h, w), UINT8.
        width: of the fade inside the mask, in pixels.
    """
    return pasted(edited, template, mask >= EDITED, width, np.float32)

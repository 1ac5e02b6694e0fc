"""Masks of pixels: which latents they make active, and how an edit is pasted into the template.

Knows arrays, nothing of requests, engines or Triton.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import max_pool2d

from tessera.contract import EDITED
from tessera.types import Array

FEATHER = 4
"""Width in pixels of the fade from template to edit, inwards from the border of the mask."""


def active_latents(mask: Array, pixels: int) -> npt.NDArray[np.uint8]:
    """1 for every latent (h, w) with at least one pixel to edit, else 0.

    Args:
        mask: (h * pixels, w * pixels), UINT8.
        pixels: side of the square of pixels that one latent covers.
    """
    height, width = mask.shape
    squares = (mask >= EDITED).reshape(height // pixels, pixels, width // pixels, pixels)
    return squares.any((1, 3)).astype(np.uint8)


def feathered(mask: Array) -> torch.Tensor:
    """The edit's share of each pixel (h, w): 0 outside the mask, rising to 1 within `FEATHER`
    pixels of its border.

    Where the mask is too thin for that, the share rises to 1 in the middle.
    """
    inside = torch.from_numpy(mask >= EDITED).float()[None]
    depth, core = inside, inside
    for _ in range(FEATHER - 1):
        core = -max_pool2d(-core, 3, 1, 1)
        depth = depth + core
    side = 2 * FEATHER - 1
    deepest = max_pool2d(depth, side, 1, side // 2).clamp(min=1)
    return (depth / deepest)[0]


def paste(edited: Array, template: Array, mask: Array) -> Array:
    """Paste an edit into the template through the feathered mask; returns (h, w, 3), UINT8.

    Outside the mask the pixels equal the template's bit for bit.

    Args:
        edited: (h, w, 3), UINT8.
        template: (h, w, 3), UINT8.
        mask: (h, w), UINT8.
    """
    share = feathered(mask).numpy()[..., None]
    mixed = share * edited + (1 - share) * template
    return mixed.round().astype(np.uint8)

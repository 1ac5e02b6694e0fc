"""Masks of pixels: the latents that they make active, and how an edit is pasted back into the
template.

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
"""Pixels over which an edit fades in, from the border of the mask inwards."""


def active_latents(mask: Array, pixels: int) -> npt.NDArray[np.uint8]:
    """1 for every latent (h, w) that has a pixel to edit, else 0.

    Args:
        mask: (h * pixels, w * pixels) of UINT8.
        pixels: side of the square that one latent covers.
    """
    height, width = mask.shape
    squares = (mask >= EDITED).reshape(height // pixels, pixels, width // pixels, pixels)
    return squares.any((1, 3)).astype(np.uint8)


def feathered(mask: Array) -> torch.Tensor:
    """How much of the edit shows at each pixel (h, w): 0 outside the mask, rising to 1 within
    `FEATHER` pixels of its border.

    Where the mask is too thin for that, it rises to 1 in its middle.
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
    """The edit inside the feathered mask, the template's own pixels, bit for bit, outside.

    Args:
        edited: (h, w, 3) of UINT8.
        template: (h, w, 3) of UINT8.
        mask: (h, w) of UINT8.
    """
    share = feathered(mask).numpy()[..., None]
    mixed = share * edited + (1 - share) * template
    return mixed.round().astype(np.uint8)

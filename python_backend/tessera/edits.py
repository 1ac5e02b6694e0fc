"""What makes a denoising an edit: which latents may change, what the others are, and how the
picture is put back into the template's.

Knows tensors, nothing of requests, engines or Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import max_pool2d

from tessera.contract import EDITED
from tessera.engines.base import Engine

Array = npt.NDArray[Any]

TEMPLATE_SEED = 0
"""Of the noise that re-noises a template: the same for every request, so that cached activations of
a template fit them all. A request with this seed has the same noise inside and outside its mask."""

FEATHER = 4
"""Pixels over which an edit fades in, from the border of the mask inwards."""


@dataclass(frozen=True)
class Canvas:
    """A template in latents.

    Attributes:
        clean: the template's latents (1, c, h, w).
        noise: what noises them (1, c, h, w).
        active: which latents the edit may change (1, 1, h, w), boolean.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    active: torch.Tensor

    def compose(self, inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        """Active latents of one, inactive latents of the other."""
        return torch.where(self.active, inside, outside)


def canvas_of(clean: torch.Tensor, active: torch.Tensor) -> Canvas:
    """The canvas of a template's latents (c, h, w) and a mask of latents (h, w)."""
    generator = torch.Generator("cpu").manual_seed(TEMPLATE_SEED)
    noise = torch.randn((1, *clean.shape), generator=generator)
    return Canvas(clean[None], noise, active[None, None].bool())


def encode_template(engine: Engine, pixels: Array, scale: float) -> torch.Tensor:
    """Latents (c, h, w) of a picture (h * p, w * p, 3) of UINT8: the mean that the autoencoder
    gives, so that a template has one set of latents, whatever a request's seed.

    Args:
        engine: takes `image` (n, 3, H, W) in -1..1, gives `mean` (n, c, h, w).
        pixels: the picture.
        scale: the autoencoder's scaling factor.
    """
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
    return scale * engine.run({"image": image / 255 * 2 - 1})["mean"][0].float().cpu()


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

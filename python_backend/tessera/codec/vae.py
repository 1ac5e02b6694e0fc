"""Pixels -> latents -> pixels, by the autoencoder's engines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tessera.engines.base import Engine
from tessera.types import Array


def decode_latents(engine: Engine, latents: torch.Tensor, scale: float) -> npt.NDArray[np.uint8]:
    """Picture (n, height, width, 3) of latents, rounded as diffusers' image processor does.

    Args:
        engine: takes `latents`, gives `image` (n, 3, height, width) around -1..1.
        latents: (n, c, h, w).
        scale: the autoencoder's scaling factor.
    """
    image = engine.run({"latents": latents / scale})["image"].float().cpu()
    unit = (image * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous().numpy()
    pixels: npt.NDArray[np.uint8] = (unit * 255).round().astype(np.uint8)
    return pixels


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

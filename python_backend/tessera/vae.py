"""Latents -> pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tessera.engines.base import Engine


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

"""Pixels to latents and back, by the VAE's engines. Knows nothing of requests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tessera.engines.base import Engine
from tessera.types import Array


def decode_latents(engine: Engine, latents: torch.Tensor, scale: float) -> npt.NDArray[np.uint8]:
    """Decode latents to images (n, height, width, 3), UINT8.

    Values are rounded as in diffusers' image processor.

    Args:
        engine: takes `latents`, returns `image` (n, 3, height, width) around -1..1.
        latents: (n, c, h, w).
        scale: the VAE's scaling factor.
    """
    image = engine.run({"latents": latents / scale})["image"].float().cpu()
    unit = (image * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous().numpy()
    pixels: npt.NDArray[np.uint8] = (unit * 255).round().astype(np.uint8)
    return pixels


def encode_template(engine: Engine, pixels: Array, scale: float) -> torch.Tensor:
    """Encode a template to latents (c, h, w).

    Uses the mean of the VAE's distribution, so that a template's latents do not depend on a
    request's seed.

    Args:
        engine: takes `image` (n, 3, H, W) in -1..1, returns `mean` (n, c, h, w).
        pixels: the template's image (h * p, w * p, 3), UINT8.
        scale: the VAE's scaling factor.
    """
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
    return scale * engine.run({"image": image / 255 * 2 - 1})["mean"][0].float().cpu()

"""Pixels to latents and back, by the VAE's engines. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tessera.codec.masks import sampled
from tessera.contract import EDITED
from tessera.engines.base import Engine
from tessera.manifest import Latents
from tessera.types import Array


def decode_latents(engine: Engine, latents: torch.Tensor, space: Latents) -> npt.NDArray[np.uint8]:
    """Decode latents to images (n, height, width, 3), UINT8.

    Values are rounded as in diffusers' image processor.

    Args:
        engine: takes `latents`, returns `image` (n, 3, height, width) around -1..1.
        latents: (n, c, h, w).
        space: the bundle's latent space.
    """
    encoded = latents / space.scale
    if space.std:
        encoded = latents * _channels(space.std) / space.scale + _channels(space.mean)
    image = engine.run({"latents": encoded})["image"].float().cpu()
    unit = (image * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous().numpy()
    pixels: npt.NDArray[np.uint8] = (unit * 255).round().astype(np.uint8)
    return pixels


def encode_template(engine: Engine, pixels: Array, space: Latents) -> torch.Tensor:
    """Encode a template to latents (c, h, w).

    Uses the mean of the VAE's distribution, so that a template's latents do not depend on a
    request's seed.

    Args:
        engine: takes `image` (n, 3, H, W) in -1..1, returns `mean` (n, c, h, w).
        pixels: the template's image (h * p, w * p, 3), UINT8.
        space: the bundle's latent space.
    """
    return _encoded(engine, _image(pixels), space)


def encode_masked(engine: Engine, pixels: Array, mask: Array, space: Latents) -> torch.Tensor:
    """What an inpainting UNet takes beside the latents: (1 + c, h, w), the mask and the latents of
    the picture, which is grey inside the mask.

    Mask and grey are those of diffusers' inpainting pipelines.

    Args:
        engine: see `encode_template`.
        pixels: the template's image (h * p, w * p, 3), UINT8.
        mask: (h * p, w * p), UINT8.
        space: the bundle's latent space.
    """
    kept = torch.from_numpy(mask < EDITED)
    latents = _encoded(engine, _image(pixels) * kept, space)
    return torch.cat([torch.from_numpy(sampled(mask, space.pixels))[None].float(), latents])


def encode_nothing(engine: Engine, width: int, height: int, space: Latents) -> torch.Tensor:
    """The same (1 + c, h, w) for a generation: everything is masked.

    Args:
        engine: see `encode_template`.
        width: of the picture in pixels.
        height: of the picture in pixels.
        space: the bundle's latent space.
    """
    pixels = np.zeros((height, width, 3), np.uint8)
    return encode_masked(engine, pixels, np.full((height, width), 255, np.uint8), space)


def unmasked(latents: torch.Tensor) -> torch.Tensor:
    """The same (1 + c, h, w) of a template without a mask, from its latents (c, h, w)."""
    return torch.cat([torch.zeros_like(latents[:1]), latents])


def _image(pixels: Array) -> torch.Tensor:
    """Pixels (h, w, 3), UINT8, as the VAE takes them: (1, 3, h, w) in -1..1."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
    return image / 255 * 2 - 1


def _encoded(engine: Engine, image: torch.Tensor, space: Latents) -> torch.Tensor:
    encoded = engine.run({"image": image})["mean"][0].float().cpu()
    if space.std:
        encoded = (encoded - _channels(space.mean)) / _channels(space.std)
    return space.scale * encoded


def _channels(values: Sequence[float]) -> torch.Tensor:
    """(c, 1, 1)."""
    return torch.tensor(values)[:, None, None]

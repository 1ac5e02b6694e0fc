"""Edits by diffusers' inpainting pipelines."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch

from tessera.codec.masks import paste
from tessera.contract import SCHEDULERS
from tessera.denoise.canvas import TEMPLATE_SEED

PROMPT = "a large blue star at the top on a green background"


def by_diffusers(pipe: Any, image: Any, mask: Any, *, scheduler: str, **options: Any) -> Any:
    """What diffusers' inpainting makes of the mean of the template's latents, pasted back."""
    spec = SCHEDULERS[scheduler]
    kind = getattr(diffusers, spec.cls)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **dict(spec.settings))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255 * 2 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(pixels.float()).latent_dist.mean
    clean = mean * pipe.vae.config.scaling_factor
    height, width = mask.shape
    result = pipe(
        PROMPT,
        image=clean,
        masked_image_latents=clean,
        mask_image=torch.from_numpy((mask >= 128).astype(np.float32))[None, None],
        width=width,
        height=height,
        generator=torch.Generator("cpu").manual_seed(TEMPLATE_SEED),
        output_type="np",
        **options,
    )
    edited = (result.images[0] * 255).round().astype(np.uint8)
    return paste(edited, image, mask)

"""Edits by diffusers' inpainting pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tessera.codec.masks import paste
from tessera.denoise.canvas import TEMPLATE_SEED
from tests.samples.schedulers import diffusers_scheduler

PROMPT = "a large blue star at the top on a green background"


def by_diffusers(
    pipe: Any,
    image: Any,
    mask: Any,
    /,
    *,
    scheduler: str,
    seed: int = TEMPLATE_SEED,
    **options: Any,
) -> Any:
    """What diffusers' inpainting makes of the mean of the template's latents, pasted back.

    An inpainting UNet gets the mean of the masked picture's, too. With an `image` among the options
    the pipeline encodes that.
    """
    pipe.scheduler = diffusers_scheduler(scheduler, pipe.scheduler.config)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255 * 2 - 1
    kept = pixels * torch.from_numpy(mask < 128)
    with torch.no_grad():
        means = [pipe.vae.encode(each.float()).latent_dist.mean for each in (pixels, kept)]
    clean, masked = (mean * pipe.vae.config.scaling_factor for mean in means)
    height, width = mask.shape
    if "image" not in options:
        options |= {"image": clean, "masked_image_latents": masked}
    result = pipe(
        options.pop("prompt", PROMPT),
        mask_image=torch.from_numpy((mask >= 128).astype(np.float32))[None, None],
        width=width,
        height=height,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        **options,
    )
    edited = (result.images[0] * 255).round().astype(np.uint8)
    return paste(edited, image, mask)

"""Edits by diffusers' inpainting pipelines, and pictures and masks for them."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch

from bench.server import Server
from tessera.codec.masks import paste
from tessera.contract import SCHEDULERS
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.variants import VARIANTS
from tessera_client import Client
from tests.samples.bundles import Small

PROMPT = "a large blue star at the top on a green background"


def ramp(width: int = 128, height: int = 128) -> Any:
    """A picture without any help from the server."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 17), np.cos(y / 7), np.sin((x + 2 * y) / 23)]
    return np.stack([(127 + 120 * w).astype(np.uint8) for w in waves], -1)


def island(width: int = 128, height: int = 128) -> Any:
    """A mask whose borders are those of latents of any size up to 8, so that diffusers' nearest
    neighbour reads the same mask.
    """
    mask = np.zeros((height, width), np.uint8)
    mask[24:72, 32:96] = 255
    mask[80:96, 8:24] = 128
    mask[32:40, 40:48] = 127
    return mask


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


def largest(result: Any, expected: Any) -> int:
    return int(np.abs(np.asarray(result.image, np.int16) - expected.astype(np.int16)).max())


def dense_edit_equals_diffusers(server: Server, made: Small) -> None:
    """With random weights, at a size that is no square."""
    kinds = {
        "StableDiffusionPipeline": diffusers.StableDiffusionInpaintPipeline,
        "StableDiffusionXLPipeline": diffusers.StableDiffusionXLInpaintPipeline,
    }
    off = {} if VARIANTS[made.variant].pooled else {"safety_checker": None}
    kind = kinds[VARIANTS[made.variant].pipeline]
    pipe = kind.from_pretrained(str(made.checkpoint), dtype=torch.float32, **off)
    pipe.set_progress_bar_config(disable=True)
    image, mask = ramp(120, 96), island(120, 96)
    with Client(server.http, timeout=120) as client:
        for strength in (1.0, 0.7):
            result = client.edit(
                image,
                mask,
                PROMPT,
                seed=TEMPLATE_SEED,
                steps=6,
                guidance=3.0,
                scheduler="euler",
                strength=strength,
                mode="dense",
            )
            expected = by_diffusers(
                pipe,
                image,
                mask,
                scheduler="euler",
                num_inference_steps=6,
                guidance_scale=3.0,
                strength=strength,
            )
            assert (expected != image).mean() > 0.1
            assert largest(result, expected) <= 2

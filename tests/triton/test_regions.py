"""Several masks with a prompt each by a real server."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from bench.server import DEMO_CHECKPOINT
from tessera.codec.masks import paste
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera_client import Client, Region
from tests.samples.images import largest, ramp
from tests.samples.inpainting import PROMPT
from tests.samples.schedulers import diffusers_scheduler

OTHER = "a small red circle in the center on a white background"
THIRD = "a large green square at the left on a yellow background"


def rectangle(x: int, y: int, width: int, height: int) -> Any:
    mask = np.zeros((128, 128), np.uint8)
    mask[y : y + height, x : x + width] = 255
    return mask


LEFT, RIGHT = rectangle(8, 24, 48, 64), rectangle(72, 24, 48, 64)
WANTED: dict[str, Any] = {"steps": 10, "seed": 3, "scheduler": "euler", "guidance": 4.0}


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_regions_of_one_prompt_are_one_mask(http_client: Client, mode: str) -> None:
    image, both = ramp(), np.maximum(LEFT, RIGHT)
    options = WANTED | {"mode": mode, "quality": "fast"}  # by the same recording
    one = http_client.edit(image, both, PROMPT, **options)
    two = http_client.edit(image, LEFT, PROMPT, regions=[Region(RIGHT, PROMPT)], **options)
    assert (two.info.mode, two.info.regions, one.info.regions) == (mode, 1, 0)
    assert two.info.mask_ratio == one.info.mask_ratio
    apart = np.abs(np.asarray(one.image, np.int16) - np.asarray(two.image))
    assert apart.max() <= 2


@torch.inference_mode()
def by_hand(image: Any, prompts: list[str], masks: list[Any]) -> Any:
    """Over diffusers' components: each latent takes the prediction of its own prompt."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(DEMO_CHECKPOINT)
    name, config = WANTED["scheduler"], pipe.scheduler.config
    steps, fresh = (diffusers_scheduler(name, config) for _ in range(2))
    for each in (steps, fresh):
        each.set_timesteps(WANTED["steps"])
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255 * 2 - 1
    scale = pipe.vae.config.scaling_factor
    clean = pipe.vae.encode(pixels).latent_dist.mean * scale
    noise = torch.randn(clean.shape, generator=torch.Generator("cpu").manual_seed(TEMPLATE_SEED))
    active = [torch.from_numpy(mask[::4, ::4] > 0)[None, None] for mask in masks]
    text = torch.cat([pipe.encode_prompt(each, "cpu", 1, False)[0] for each in ("", *prompts)])
    latents = noise * steps.init_noise_sigma
    for index, t in enumerate(steps.timesteps):
        rows = steps.scale_model_input(latents, t).repeat(len(text), 1, 1, 1)
        without, *wanted = pipe.unet(rows, t, encoder_hidden_states=text).sample[:, None]
        positive = wanted[0]
        for prediction, mine in zip(wanted[1:], active[1:], strict=True):
            positive = torch.where(mine, prediction, positive)
        guided = without + WANTED["guidance"] * (positive - without)
        latents = steps.step(guided, t, latents).prev_sample
        following = steps.timesteps[index + 1 : index + 2]
        outside = fresh.add_noise(clean, noise, following) if len(following) else clean
        latents = torch.where(torch.stack(active).any(0), latents, outside)
    decoded = pipe.vae.decode(latents / scale).sample
    shown = (decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    return paste((255 * shown).round().astype(np.uint8), image, np.maximum.reduce(masks))


def test_each_region_follows_its_prompt(http_client: Client) -> None:
    image, overlapping = ramp(), rectangle(40, 40, 32, 32)
    regions = [Region(RIGHT, OTHER), Region(overlapping, THIRD)]
    options = WANTED | {"seed": TEMPLATE_SEED, "mode": "dense"}
    result = http_client.edit(image, LEFT, PROMPT, regions=regions, **options)
    expected = by_hand(image, [PROMPT, OTHER, THIRD], [LEFT, RIGHT, overlapping])
    assert largest(result, expected) <= 2
    both = np.maximum.reduce([LEFT, RIGHT, overlapping])
    one = http_client.edit(image, both, PROMPT, **options)
    assert largest(one, expected) > 20, "the prompts matter"

"""Samplers with a network that knows the picture: all of them end at it, however large its latents
are, and whatever the checkpoint's config leaves unsaid.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from tessera.contract import Scheduler
from tessera.denoise.sampler import Sampler
from tests.samples.schedulers import DEMO

SILENT = {k: v for k, v in DEMO.items() if k not in ("clip_sample", "set_alpha_to_one")}
"""As a config that was written for another sampler."""
EXACT = [Scheduler.EULER, Scheduler.DDIM, Scheduler.DPMPP_2M, Scheduler.UNIPC]


@pytest.mark.parametrize("config", [DEMO, SILENT], ids=["said", "left out"])
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("name", EXACT)
def test_latents_that_are_large_are_reached(
    name: Scheduler, steps: int, config: dict[str, Any]
) -> None:
    sampler = Sampler(name, config, steps=steps, seed=0)
    clean = 3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert clean.abs().max() > 3
    latents = sampler.noised(clean, sampler.initial_noise(4, 8, 8), 0)
    for index, timestep in enumerate(sampler.timesteps):
        share = sampler._scheduler.alphas_cumprod[int(timestep)]
        given = sampler.network_input(latents, index)
        noise = (given - share.sqrt() * clean) / (1 - share).sqrt()
        velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
        latents = sampler.step(velocity, latents, index)
    tolerance = 0.5 if config is DEMO and name is Scheduler.DDIM else 0.05
    assert (latents - clean).abs().max() < tolerance


def test_ddim_clips_no_more_than_in_a_pipeline_of_diffusers() -> None:
    by_itself = DDIMScheduler.from_config(SILENT)
    assert by_itself.config.clip_sample, "the default that is meant for pixels"
    parts = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor")
    )
    with pytest.warns(FutureWarning, match="clip_sample"):
        pipe = StableDiffusionPipeline(
            scheduler=by_itself,
            requires_safety_checker=False,
            **parts,
        )
    ours = Sampler(Scheduler.DDIM, SILENT, steps=5, seed=0)._scheduler
    assert ours.config.clip_sample is pipe.scheduler.config.clip_sample is False

"""A picture by Tessera's own parts, in this process: the halves of the UNet, the tick, the sampler
and the VAE of a pipeline in torch. The pipeline embeds the prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from tessera.codec.vae import decode_latents
from tessera.controls.fanout import FanOut
from tessera.denoise.running import RunningControl, start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tessera.denoise.unet import UNet, conditions_of, embed_guidance
from tessera.engines.torch import TorchEngine
from tessera.networks.graphs import wrap
from tessera.variants import VARIANTS
from tessera_build.graphs import latents_of
from tests.samples.plans import plan

PROMPT = "a large blue star"


@torch.inference_mode()
def draw(
    pipe: DiffusionPipeline,
    variant: str,
    scheduler: str,
    *,
    steps: int,
    guidance: float,
    seed: int,
    controls: Sequence[RunningControl] = (),
    fan_out: FanOut | None = None,
) -> Any:
    """A picture of the UNet's natural size, (h, w, 3) of UINT8."""
    space = latents_of(pipe)
    side = int(pipe.unet.config.sample_size)
    embedded = pipe.encode_prompt(
        PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    positive, negative, *pooled = embedded
    text = torch.cat([negative, positive])
    both = torch.cat([pooled[1], pooled[0]]) if pooled else torch.zeros(2, 1)
    wanted = plan(
        steps=steps,
        guidance=guidance,
        seed=seed,
        scheduler=scheduler,
        width=side * space.pixels,
        height=side * space.pixels,
    )
    row = VARIANTS[variant]
    width = pipe.unet.config.time_cond_proj_dim or 0
    if width:
        wanted = dataclasses.replace(wanted, embedded=True)
    if not wanted.guided:
        text, both = text[1:], both[1:]
    conditions = conditions_of(
        text,
        both,
        width=wanted.width,
        height=wanted.height,
        variant=row,
        guidance=embed_guidance(guidance, width),
    )
    config = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    sampler = Sampler(scheduler, config, steps=steps, seed=seed)
    halves = (TorchEngine(wrap(f"unet_{h}", pipe.unet, row)) for h in ("encoder", "decoder"))
    network = UNet(*halves, max_rows=2)
    shape = (space.channels, side, side)
    request = start(wanted, conditions, sampler, shape=shape, controls=tuple(controls))
    for number in range(len(sampler.timesteps)):
        tick([request], network.predict, number + 1, controls=fan_out)
        assert request.error is None, request.error
    decoder = TorchEngine(wrap("vae_decoder", pipe.vae, row))
    return decode_latents(decoder, request.latents, space)[0]


def by_diffusers(
    pipe: DiffusionPipeline, *, steps: int, guidance: float, seed: int, **others: Any
) -> Any:
    """The same picture by the pipeline itself."""
    pipe.set_progress_bar_config(disable=True)
    picture = pipe(
        PROMPT,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        **others,
    ).images[0]
    return (picture * 255).round().astype("uint8")

"""Small checkpoints of forms that the releases do not have, and bundles of them.

Several forms share a checkpoint, since each takes a build and a server of its own.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    EDMDPMSolverMultistepScheduler,
    LCMScheduler,
    UNet2DConditionModel,
)

from tessera_build.bundle import build_bundle, is_current
from tests.fakes.checkpoint import randomised, topology
from tests.fakes.pruned import PRUNED, pruned
from tests.samples.bundles import CHOICES, KEPT

PLAIN = replace(CHOICES, lora_rank=0)
"""Without the side path, to build them sooner."""


def tiny() -> AutoencoderTiny:
    """In the form of TAESD."""
    made = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)
    )
    randomised(made)
    last = made.decoder.layers[-1]  # else its pictures are nearly black
    last.load_state_dict({"weight": 8 * last.weight, "bias": last.bias + 0.5})
    return made


def asymmetric() -> AsymmetricAutoencoderKL:
    """With a decoder that is larger than its encoder."""
    made: AsymmetricAutoencoderKL = randomised(
        AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            down_block_out_channels=(16, 16, 32, 32),
            up_block_types=("UpDecoderBlock2D",) * 4,
            up_block_out_channels=(16, 32, 32, 48),
            layers_per_up_block=2,
            norm_num_groups=8,
        )
    )
    return made


def pruned_and_tiny() -> DiffusionPipeline:
    """Segmind's small-sd, which has no mid block, with a tiny VAE."""
    pipe = topology("sd15")
    pipe.register_modules(unet=pruned("small-sd"), vae=tiny())
    return pipe


def distilled_and_asymmetric() -> DiffusionPipeline:
    """LCM-distilled: the UNet takes the guidance. With an asymmetric VAE."""
    pipe = topology("sd15")
    scheduler = LCMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.register_modules(unet=pruned("lcm"), vae=asymmetric(), scheduler=scheduler)
    return pipe


def vega_in_edm() -> DiffusionPipeline:
    """Playground v2.5: EDM and normalised latents. With Segmind Vega's UNet."""
    pipe = topology("sdxl")
    torch.manual_seed(2)
    unet = UNet2DConditionModel(**PRUNED["vega"] | {"sample_size": 16})
    pipe.register_modules(unet=randomised(unet))
    latents: dict[str, Any] = {
        "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
        "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
        "scaling_factor": 0.5,
    }
    pipe.vae.register_to_config(**latents)
    pipe.scheduler = EDMDPMSolverMultistepScheduler(sigma_max=80.0, sigma_min=0.002)
    return pipe


FORMS: dict[str, Callable[[], DiffusionPipeline]] = {
    "small-sd": pruned_and_tiny,
    "lcm": distilled_and_asymmetric,
    "playground": vega_in_edm,
}


@dataclass(frozen=True)
class Form:
    """A checkpoint of one of `FORMS`, and the bundle made of it."""

    name: str
    pipe: DiffusionPipeline
    bundle: Path


def make_form(name: str) -> Form:
    """The bundle is the kept one, built if it is missing or stale."""
    torch.manual_seed(3)
    pipe = FORMS[name]()
    bundle = KEPT / name
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f".{name}.wanted").open("w") as lock, tempfile.TemporaryDirectory() as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        checkpoint = Path(folder) / "checkpoint"
        pipe.save_pretrained(checkpoint)
        if not is_current(bundle, checkpoint, PLAIN):
            build_bundle(checkpoint, bundle, choices=PLAIN, progress=lambda what, done, total: None)
    return Form(name, pipe, bundle)

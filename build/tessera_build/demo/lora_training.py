"""Trains the demo LoRAs: one for each of the renderer's styles, each written in another of the
layouts that such files have.

A LoRA that is there in the work folder is not trained again.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file

from tessera_build.demo.draw import Picture
from tessera_build.demo.fitting import fit, noise_schedule, weighted
from tessera_build.demo.scenes import Scene, held_out_scenes
from tessera_build.demo.sheets import contact_sheet
from tessera_build.demo.styles import STYLES, shows
from tessera_build.demo.training import StageBars, evaluate
from tessera_build.demo.unet_training import LatentSet, make_batch, make_latents, velocity_errors

STEPS = 600
SCENES = 2500
JUDGED = 40
PEAK_RATE = 2e-3

_LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
_CONVOLUTIONS = ("conv1", "conv2")
_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class LoraRecipe:
    """What one LoRA changes, and how its file is written."""

    style: str
    layout: Literal["kohya", "diffusers", "peft"]
    targets: tuple[str, ...]
    rank: int = 8
    text: bool = False


RECIPES = (
    LoraRecipe("outline", "kohya", (*_LINEAR, *_CONVOLUTIONS)),
    LoraRecipe("halved", "diffusers", (*_LINEAR, *_CONVOLUTIONS), rank=4),
    LoraRecipe("night", "peft", _LINEAR, text=True),
)


def train_loras(base: Path, out: Path, work: Path, *, seed: int) -> dict[str, tuple[int, int]]:
    """Train on the demo checkpoint `base`, write safetensors files of float16 into `out`.

    Returns:
        of `JUDGED` unseen prompts, how many pictures are in the LoRA's style: (without, with it).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    plain = _pictures(base)
    found = {}
    with StageBars() as bars:
        for recipe in RECIPES:
            path = work / f"{recipe.style}.safetensors"
            if not path.exists():
                pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32).to(device)
                _train(pipe, recipe, path, seed=seed, bars=bars)
            styled = _pictures(base, path)
            contact_sheet(styled[:24], columns=8).save(path.with_suffix(".png"))
            shutil.copyfile(path, out / path.name)
            without, having = (
                sum(shows(p, s, recipe.style) for p, s in zip(pictures, _scenes(), strict=True))
                for pictures in (plain, styled)
            )
            found[recipe.style] = without, having
            bars.say(f"{recipe.style}: {having} of {JUDGED} in its style, {without} without it")
    return found


def _scenes() -> list[Scene]:
    return held_out_scenes(JUDGED)


def _pictures(base: Path, lora: Path | None = None) -> list[Picture]:
    pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    if lora:
        pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    return evaluate(pipe, _scenes())[1]


def _train(
    pipe: StableDiffusionPipeline, recipe: LoraRecipe, path: Path, *, seed: int, bars: StageBars
) -> None:
    from peft import LoraConfig

    data = make_latents(
        pipe.vae,
        SCENES,
        draw=STYLES[recipe.style],
        seed=seed + 1,
        device=pipe.device,
        report=bars.stage("latents", SCENES),
    )
    torch.manual_seed(seed)
    for network in (pipe.unet, pipe.text_encoder):
        network.requires_grad_(False)
    rank = {"r": recipe.rank, "lora_alpha": recipe.rank}
    pipe.unet.add_adapter(LoraConfig(**rank, target_modules=list(recipe.targets)))
    if recipe.text:
        pipe.text_encoder.add_adapter(LoraConfig(**rank, target_modules=list(_TEXT)))
    _fit(pipe, data, seed=seed, report=bars.stage(recipe.style, STEPS))
    save_file(_state(pipe, recipe), path, {"format": "pt"})


def _fit(
    pipe: StableDiffusionPipeline,
    data: LatentSet,
    *,
    seed: int,
    report: Callable[[int, str], None],
) -> None:
    networks = (pipe.unet, pipe.text_encoder)
    for network in networks:
        network.train()
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    loss = partial(_loss, pipe, data, noise_schedule())
    fit(parameters, loss, steps=STEPS, peak_rate=PEAK_RATE, seed=seed, report=report)


def _loss(
    pipe: StableDiffusionPipeline,
    data: LatentSet,
    schedule: DDPMScheduler,
    _step: int,
    rng: random.Random,
) -> torch.Tensor:
    """Of a batch that `rng` draws."""
    latents, shares, _, ids = (
        tensor.to(pipe.device) for tensor in make_batch(data, pipe.tokenizer, rng)
    )
    errors = velocity_errors(pipe.unet, pipe.text_encoder, schedule, latents, ids)
    return weighted(errors, shares)


def _state(pipe: StableDiffusionPipeline, recipe: LoraRecipe) -> dict[str, torch.Tensor]:
    """The trained weights by the names of the recipe's layout."""
    from peft import get_peft_model_state_dict

    parts = {"unet": pipe.unet} | ({"text_encoder": pipe.text_encoder} if recipe.text else {})
    state = {
        f"{part}.{name}": tensor
        for part, network in parts.items()
        for name, tensor in get_peft_model_state_dict(network).items()
    }
    if recipe.layout == "kohya":
        state = convert_state_dict_to_kohya(state)
    elif recipe.layout == "diffusers":
        state = {_diffusers_name(name): tensor for name, tensor in state.items()}
    return {name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in state.items()}


def _diffusers_name(peft: str) -> str:
    """Of the UNet's; `convert_state_dict_to_diffusers` knows those of attention only."""
    return peft.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")

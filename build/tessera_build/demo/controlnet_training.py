"""Trains the demo ControlNets: one for each kind of control picture, beside the frozen checkpoint.

A ControlNet that is there in the work folder is not trained again.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from PIL import Image

from tessera_build.demo.controls import CONTROLS, Judged
from tessera_build.demo.draw import Picture
from tessera_build.demo.fitting import fit, noise_schedule, weighted
from tessera_build.demo.scenes import Scene, describe_colours, held_out_scenes, paraphrase
from tessera_build.demo.sheets import contact_sheet
from tessera_build.demo.text_training import tokenize
from tessera_build.demo.training import StageBars, generate
from tessera_build.demo.unet_training import BATCH, LatentSet, make_latents, velocity_errors

STEPS = {"edges": 1100, "silhouette": 1000}
SCENES = 3000
JUDGED = 40
PEAK_RATE = 1e-3
FILLED_FIRST = 250
"""Steps at the start that show silhouettes, whatever is learnt after: where a filled shape goes is
learnt in 200 steps, while outlines alone taught nothing in as many."""

SAMPLE_EVERY = 200  # steps
SAMPLED = 8
"""Scenes on the sheet that is made now and then."""

DROP_PROMPT, DROP_GEOMETRY = 0.5, 0.3
"""Shares of empty prompts and of those with colours only: with the rest alone, the prompt would go
on to decide what a picture shows, and the control picture would not be needed."""

_EMBEDDING_WIDTHS = (16, 32, 96)  # two halvings: a latent has four pixels a side


def train_controlnets(
    base: Path, out: Path, work: Path, *, seed: int
) -> dict[str, tuple[Judged, Judged]]:
    """Train on the demo checkpoint `base`, write diffusers folders of float16 into `out`.

    Returns:
        what became of `JUDGED` unseen scenes, of which the prompt says the colours only: (without,
        with the control picture).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32).to(device)
    for network in (pipe.unet, pipe.text_encoder):
        network.requires_grad_(False)
    scenes = held_out_scenes(JUDGED)
    without = Judged.of(generate(pipe, [describe_colours(s) for s in scenes]), scenes)
    found: dict[str, tuple[Judged, Judged]] = {}
    rows: list[Picture] = []
    data = None
    with StageBars() as bars:
        for name in CONTROLS:
            folder = work / name
            if not folder.exists():
                data = data or _latents(pipe, seed, bars)
                _save(_train(pipe, name, data, work, seed=seed, bars=bars), folder)
            shutil.copytree(folder, out / name, dirs_exist_ok=True)
            pictures = _pictures(pipe, _load(folder, pipe.device), name, scenes)
            rows += _rows(pictures, name, scenes)
            found[name] = without, Judged.of(pictures, scenes)
            bars.say(f"{name}: {found[name][1]}; without it {without}")
    contact_sheet(rows, columns=SAMPLED).save(work / "controlnets.png")
    return found


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """2.2 M parameters: the UNet's encoder half, but with one ResNet block in the middle instead of
    two and attention, which would be a third of the file.
    """
    whole = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=_EMBEDDING_WIDTHS)
    small = ControlNetModel.from_config(whole.config, mid_block_type="UNetMidBlock2D")
    assert isinstance(small, ControlNetModel)
    own = small.state_dict()
    small.load_state_dict({k: v for k, v in whole.state_dict().items() if k in own})
    return small


def _latents(pipe: StableDiffusionPipeline, seed: int, bars: StageBars) -> LatentSet:
    return make_latents(
        pipe.vae, SCENES, seed=seed + 1, device=pipe.device, report=bars.stage("latents", SCENES)
    )


def _train(
    pipe: StableDiffusionPipeline,
    name: str,
    data: LatentSet,
    work: Path,
    *,
    seed: int,
    bars: StageBars,
) -> ControlNetModel:
    """One ControlNet; sheets of the first unseen scenes show how it comes along."""
    torch.manual_seed(seed)
    controlnet = new_controlnet(pipe.unet).to(pipe.device).train()
    filled, controls = (
        np.stack([CONTROLS[kind](scene)[:, :, 0] for scene in data.scenes])
        for kind in ("silhouette", name)
    )
    schedule = noise_schedule()
    bar = bars.stage(name, STEPS[name])

    def loss(step: int, rng: random.Random) -> torch.Tensor:
        picks = [rng.randrange(len(data.scenes)) for _ in range(BATCH)]
        ids = tokenize(pipe.tokenizer, [_prompt(data.scenes[i], rng) for i in picks])
        shown = filled if step < FILLED_FIRST else controls
        pictures = torch.from_numpy(shown[picks]).to(pipe.device)[:, None] / 255
        error = velocity_errors(
            _controlled(pipe.unet, controlnet, pictures.expand(-1, 3, -1, -1)),
            pipe.text_encoder,
            schedule,
            data.latents[picks].float().to(pipe.device),
            ids.to(pipe.device),
        )
        return weighted(error, data.shares[picks].float().to(pipe.device))

    def report(done: int, note: str) -> None:
        bar(done, note)
        if done % SAMPLE_EVERY == 0 and done < STEPS[name]:
            scenes = held_out_scenes(SAMPLED)
            pictures = _pictures(pipe, controlnet.eval(), name, scenes)
            controlnet.train()
            sheet = contact_sheet(_rows(pictures, name, scenes), columns=SAMPLED)
            sheet.save(work / f"{name}-{done:05}.png")
            bars.say(f"{name}, step {done}: {Judged.of(pictures, scenes)}")

    fit(
        list(controlnet.parameters()),
        loss,
        steps=STEPS[name],
        peak_rate=PEAK_RATE,
        seed=seed,
        report=report,
    )
    return controlnet


def _prompt(scene: Scene, rng: random.Random) -> str:
    chance = rng.random()
    if chance < DROP_PROMPT:
        return ""
    if chance < DROP_PROMPT + DROP_GEOMETRY:
        return describe_colours(scene)
    return paraphrase(scene, rng)


def _controlled(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, pictures: torch.Tensor
) -> Callable[..., UNet2DConditionOutput]:
    """The UNet with a ControlNet's residuals of control pictures (batch, 3, 128, 128) in 0..1."""

    def call(
        noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor
    ) -> UNet2DConditionOutput:
        down, mid = controlnet(noisy, timesteps, text, pictures, return_dict=False)
        output = unet(
            noisy,
            timesteps,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        )
        assert isinstance(output, UNet2DConditionOutput)
        return output

    return call


def _pictures(
    pipe: StableDiffusionPipeline, controlnet: ControlNetModel, name: str, scenes: list[Scene]
) -> list[Picture]:
    """What becomes of scenes by their colours in words and the rest in control pictures."""
    controlled = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=controlnet)
    controls = [Image.fromarray(CONTROLS[name](s)) for s in scenes]
    return generate(controlled, [describe_colours(s) for s in scenes], controls)


def _rows(pictures: list[Picture], name: str, scenes: list[Scene]) -> list[Picture]:
    """Control pictures, then what became of them, of a sheet."""
    controls = [CONTROLS[name](s) / np.float32(255) for s in scenes[:SAMPLED]]
    return [*controls, *pictures[:SAMPLED]]


def _save(controlnet: ControlNetModel, folder: Path) -> None:
    """Write it all or not at all."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    controlnet.to("cpu", torch.float16).save_pretrained(partial, safe_serialization=True)
    partial.replace(folder)


def _load(folder: Path, device: torch.device) -> ControlNetModel:
    return ControlNetModel.from_pretrained(folder, dtype=torch.float32).to(device)

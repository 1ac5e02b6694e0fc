"""Trains the demo ControlNets: one for each kind of control picture, beside the frozen checkpoint.

A ControlNet that is there in the work folder is not trained again.
"""

from __future__ import annotations

import random
import shutil
from functools import partial
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
                torch.manual_seed(seed)
                _save(_Training(pipe, name, data, work, bars).run(seed=seed), folder)
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


class _Training:
    """One ControlNet beside the frozen pipeline; sheets of the first unseen scenes show how it
    comes along.
    """

    def __init__(
        self, pipe: StableDiffusionPipeline, name: str, data: LatentSet, work: Path, bars: StageBars
    ) -> None:
        self._pipe = pipe
        self._name = name
        self._data = data
        self._work = work
        self._bars = bars
        self._schedule = noise_schedule()
        self._bar = bars.stage(name, STEPS[name])
        self._filled, self._controls = (
            np.stack([CONTROLS[kind](scene)[:, :, 0] for scene in data.scenes])
            for kind in ("silhouette", name)
        )
        self._controlnet = new_controlnet(pipe.unet).to(pipe.device).train()

    def run(self, *, seed: int) -> ControlNetModel:
        """The trained network."""
        fit(
            list(self._controlnet.parameters()),
            self._loss,
            steps=STEPS[self._name],
            peak_rate=PEAK_RATE,
            seed=seed,
            report=self._report,
        )
        return self._controlnet

    def _loss(self, step: int, rng: random.Random) -> torch.Tensor:
        """Of a batch that `rng` draws."""
        pipe, data = self._pipe, self._data
        picks = [rng.randrange(len(data.scenes)) for _ in range(BATCH)]
        ids = tokenize(pipe.tokenizer, [_prompt(data.scenes[i], rng) for i in picks])
        shown = self._filled if step < FILLED_FIRST else self._controls
        pictures = torch.from_numpy(shown[picks]).to(pipe.device)[:, None] / 255
        error = velocity_errors(
            partial(_controlled, pipe.unet, self._controlnet, pictures.expand(-1, 3, -1, -1)),
            pipe.text_encoder,
            self._schedule,
            data.latents[picks].float().to(pipe.device),
            ids.to(pipe.device),
        )
        return weighted(error, data.shares[picks].float().to(pipe.device))

    def _report(self, done: int, note: str) -> None:
        """Moves the bar; now and then a sheet and the judge's figures."""
        self._bar(done, note)
        if done % SAMPLE_EVERY or done == STEPS[self._name]:
            return
        scenes = held_out_scenes(SAMPLED)
        pictures = _pictures(self._pipe, self._controlnet.eval(), self._name, scenes)
        self._controlnet.train()
        sheet = contact_sheet(_rows(pictures, self._name, scenes), columns=SAMPLED)
        sheet.save(self._work / f"{self._name}-{done:05}.png")
        self._bars.say(f"{self._name}, step {done}: {Judged.of(pictures, scenes)}")


def _prompt(scene: Scene, rng: random.Random) -> str:
    chance = rng.random()
    if chance < DROP_PROMPT:
        return ""
    if chance < DROP_PROMPT + DROP_GEOMETRY:
        return describe_colours(scene)
    return paraphrase(scene, rng)


def _controlled(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    pictures: torch.Tensor,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    text: torch.Tensor,
) -> UNet2DConditionOutput:
    """The UNet with a ControlNet's residuals of control pictures (batch, 3, 128, 128) in 0..1."""
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

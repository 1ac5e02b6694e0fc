"""`tessera-build train-demo`: autoencoder, text encoder, then the UNet with it, then the saved
checkpoint and its score.

Every stage leaves its result in the work folder and is skipped when that is there, so an
interrupted training goes on where it stopped.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import CLIPTextModel, CLIPTokenizer

from tessera_build.demo import networks as nets
from tessera_build.demo.checker import Score, score
from tessera_build.demo.draw import Picture
from tessera_build.demo.scenes import Scene, describe, held_out_scenes, vocabulary
from tessera_build.demo.sheets import contact_sheet
from tessera_build.demo.text_training import train_text_encoder
from tessera_build.demo.tokenizer import build_tokenizer
from tessera_build.demo.unet_training import LatentSet, Networks, make_latents, train_unet
from tessera_build.demo.vae_training import picture_batch, train_vae

GUIDANCE = 4.0
STEPS = 20


@dataclass(frozen=True)
class Recipe:
    """How much to train; docs/internals/demo-model.md says what the committed weights had.

    `start` is a checkpoint to go on from: its autoencoder is kept, its text encoder and UNet are
    trained further.
    """

    vae_steps: int = 2000
    scenes: int = 24_000
    text_steps: int = 2000
    unet_steps: int = 12_000
    seed: int = 0
    start: Path | None = None


class StageBars:
    """Progress bars, one per stage; where there is no terminal, a line per twentieth of a stage
    instead.
    """

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )

    def __enter__(self) -> StageBars:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._bar.console.print(line)

    def stage(self, name: str, total: int) -> Callable[..., None]:
        """Add a bar; the returned function takes the count done and a note."""
        task = self._bar.add_task(name, total=total, note="")
        said = 0

        def report(done: int, note: str = "") -> None:
            nonlocal said
            self._bar.update(task, completed=done, note=note)
            if not self._bar.console.is_terminal and 20 * done // total > said:
                said = 20 * done // total
                self.say(f"{name} {done}/{total} {note}")

        return report


def train_demo(recipe: Recipe, out: Path, work: Path) -> Score:
    """Train (or go on training) in `work`, write the diffusers folder `out`, return its score on
    unseen prompts.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work.mkdir(parents=True, exist_ok=True)
    with StageBars() as bars:
        vae = _autoencoder(recipe, work, device, bars)
        data = _latents(recipe, vae, work, device, bars)
        tokenizer = build_tokenizer(vocabulary())
        text_encoder = _text_encoder(recipe, tokenizer, work, device, bars)
        trained = Networks.of(_unet(recipe), text_encoder)
        pipe = nets.pipeline(vae, text_encoder, tokenizer, trained.unet)
        _train_together(recipe, trained, pipe, data, work, device, bars)
    nets.save_checkpoint(pipe, out)
    total, pictures = evaluate(StableDiffusionPipeline.from_pretrained(out), held_out_scenes(200))
    contact_sheet(pictures[:24], columns=8).save(work / "final.png")
    (out / "score.json").write_text(
        json.dumps({"fraction": total.fraction, "right": total.right}, indent=1) + "\n"
    )
    return total


def evaluate(pipe: StableDiffusionPipeline, scenes: list[Scene]) -> tuple[Score, list[Picture]]:
    """Generate one picture per scene and score them all."""
    pictures = generate(pipe, [describe(s) for s in scenes])
    return Score.total(score(p, s) for p, s in zip(pictures, scenes, strict=True)), pictures


def generate(
    pipe: StableDiffusionPipeline | StableDiffusionControlNetPipeline,
    prompts: Sequence[str],
    controls: Sequence[Image.Image] = (),
    *,
    steps: int = STEPS,
) -> list[Picture]:
    """One picture per prompt (seed = index), with a ControlNet's pipeline also per control
    picture.
    """
    pipe.set_progress_bar_config(disable=True)
    pictures: list[Picture] = []
    for start in range(0, len(prompts), 10):
        rows = slice(start, start + 10)
        seeds = range(len(prompts))[rows]
        result = pipe(
            list(prompts[rows]),
            **({"image": list(controls[rows])} if controls else {}),
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
        )
        pictures += [np.asarray(p, np.float32) for p in result.images]
    return pictures


def _autoencoder(
    recipe: Recipe, work: Path, device: torch.device, bars: StageBars
) -> AutoencoderKL:
    folder = recipe.start / "vae" if recipe.start else work / "vae"
    if not folder.exists():
        torch.manual_seed(recipe.seed)
        vae = nets.new_vae()
        train_vae(
            vae,
            recipe.vae_steps,
            seed=recipe.seed,
            device=device,
            report=bars.stage("autoencoder", recipe.vae_steps),
        )
        vae.save_pretrained(folder)
        _vae_sheet(vae, device).save(work / "vae.png")
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(vae, AutoencoderKL)
    return vae.to(device).eval()


@torch.no_grad()
def _vae_sheet(vae: AutoencoderKL, device: torch.device) -> Image.Image:
    target = picture_batch(random.Random(1), 8).to(device)
    again = vae.decode(vae.encode(target).latent_dist.mode()).sample
    both = torch.cat([target, again]).clamp(-1, 1) / 2 + 0.5
    return contact_sheet([p.permute(1, 2, 0).cpu().numpy() for p in both], columns=8)


def _latents(
    recipe: Recipe, vae: AutoencoderKL, work: Path, device: torch.device, bars: StageBars
) -> LatentSet:
    path = work / "latents.pt"
    if path.exists():
        data: LatentSet = torch.load(path, weights_only=False)  # our own file, written below
        return data
    data = make_latents(
        vae,
        recipe.scenes,
        seed=recipe.seed + 1,
        device=device,
        report=bars.stage("latents", recipe.scenes),
    )
    torch.save(data, path)
    return data


def _unet(recipe: Recipe) -> UNet2DConditionModel:
    if recipe.start:
        unet = UNet2DConditionModel.from_pretrained(recipe.start / "unet", dtype=torch.float32)
        assert isinstance(unet, UNet2DConditionModel)
        return unet
    torch.manual_seed(recipe.seed)
    return nets.new_unet()


def _text_encoder(
    recipe: Recipe, tokenizer: CLIPTokenizer, work: Path, device: torch.device, bars: StageBars
) -> CLIPTextModel:
    if recipe.start:
        return CLIPTextModel.from_pretrained(recipe.start / "text_encoder", dtype=torch.float32)
    path = work / "text.pt"
    torch.manual_seed(recipe.seed)
    text_encoder = nets.new_text_encoder(tokenizer)
    if path.exists():
        text_encoder.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    else:
        train_text_encoder(
            text_encoder,
            tokenizer,
            recipe.text_steps,
            seed=recipe.seed,
            device=device,
            report=bars.stage("text encoder", recipe.text_steps),
        )
        torch.save(text_encoder.state_dict(), path)
    return text_encoder


def _train_together(
    recipe: Recipe,
    trained: Networks,
    pipe: StableDiffusionPipeline,
    data: LatentSet,
    work: Path,
    device: torch.device,
    bars: StageBars,
) -> None:
    """Train UNet and text encoder; the averaged weights are in them, and in `pipe`, afterwards."""

    def sample(step: int) -> None:
        total, pictures = evaluate(pipe, held_out_scenes(40))
        contact_sheet(pictures, columns=8).save(work / f"sample-{step:05}.png")
        bars.say(f"step {step}: {100 * total.fraction:.1f} % of attributes right  {total.right}")

    train_unet(
        trained,
        pipe.tokenizer,
        data,
        recipe.unet_steps,
        seed=recipe.seed,
        device=device,
        checkpoint=work / "unet.pt",
        report=bars.stage("unet", recipe.unet_steps),
        sample=sample,
    )
    trained.ema.copy_to(trained.parameters())

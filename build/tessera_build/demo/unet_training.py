"""Trains the demo model's UNet and text encoder together, on latents of rendered scenes and
paraphrased prompts.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from transformers import CLIPTextModel, CLIPTokenizer

from tessera_build.demo.draw import render
from tessera_build.demo.networks import new_scheduler
from tessera_build.demo.scenes import Scene, paraphrase, sample_scene
from tessera_build.demo.text_training import tokenize
from tessera_build.demo.vae_training import encode_pictures

BATCH = 16
PEAK_RATE = 1.2e-3
TEXT_RATE = 0.5
"""Learning rate of the text encoder, in units of the UNet's."""

DROP_PROMPT = 0.1
"""Share of prompts replaced by the empty one, for classifier-free guidance (Ho & Salimans 2022)."""

EMA_DECAY = 0.9995


@dataclass
class LatentSet:
    """Scenes and their latents (n, 4, 32, 32) in half precision."""

    scenes: list[Scene]
    latents: torch.Tensor


@dataclass
class Networks:
    """What is trained together, with the averaged weights that are used in the end."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    ema: EMAModel

    @classmethod
    def of(cls, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> Networks:
        """Start the average at the current weights."""
        ema = EMAModel(
            [*unet.parameters(), *text_encoder.parameters()], decay=EMA_DECAY, use_ema_warmup=True
        )
        return cls(unet, text_encoder, ema)

    def parameters(self) -> list[torch.nn.Parameter]:
        """UNet's, then the text encoder's."""
        return [*self.unet.parameters(), *self.text_encoder.parameters()]

    def train(self, mode: bool) -> None:
        """Switch between training and inference."""
        self.unet.train(mode)
        self.text_encoder.train(mode)

    def to(self, device: torch.device) -> None:
        """Move everything to a device."""
        torch.nn.Module.to(self.unet, device)
        torch.nn.Module.to(self.text_encoder, device)
        self.ema.to(device)


def make_latents(
    vae: AutoencoderKL,
    count: int,
    *,
    seed: int,
    device: torch.device,
    report: Callable[[int], None],
) -> LatentSet:
    """Render and encode `count` scenes that are not held out."""
    rng = random.Random(seed)
    scenes: list[Scene] = []
    latents = torch.empty(count, 4, 32, 32, dtype=torch.float16)
    while len(scenes) < count:
        chunk = [s for s in (sample_scene(rng) for _ in range(40)) if not s.held_out][
            : count - len(scenes)
        ]
        pictures = torch.stack(
            [torch.from_numpy(render(s)).permute(2, 0, 1) * 2 - 1 for s in chunk]
        )
        latents[len(scenes) : len(scenes) + len(chunk)] = (
            encode_pictures(vae, pictures.to(device)).cpu().half()
        )
        scenes += chunk
        report(len(scenes))
    return LatentSet(scenes, latents)


def train_unet(
    networks: Networks,
    tokenizer: CLIPTokenizer,
    data: LatentSet,
    steps: int,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    report: Callable[[int, str], None],
    sample: Callable[[int], None],
) -> None:
    """Velocity-prediction training (Salimans & Ho 2022); resumes from `checkpoint` when it is
    there.

    `sample` is called now and then, with the averaged weights in place.
    """
    networks.to(device)
    networks.train(True)
    optimizer, schedule = _optimizer(networks, steps)
    start = _resume(checkpoint, networks, optimizer, schedule, device)
    noise_schedule = DDPMScheduler.from_config(new_scheduler().config)
    loss_average = 0.0
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        rng = random.Random(seed * 1_000_003 + step)
        latents, ids = _batch(data, tokenizer, rng)
        latents, ids = latents.to(device), ids.to(device)
        timesteps = _stratified_timesteps(latents.shape[0]).to(device)
        noise = torch.randn_like(latents)
        noisy = noise_schedule.add_noise(latents, noise, timesteps)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            hidden = networks.text_encoder(ids)[0]
            predicted = networks.unet(noisy, timesteps, hidden).sample
        target = noise_schedule.get_velocity(latents, noise, timesteps)
        loss = (predicted.float() - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        networks.ema.step(networks.parameters())
        loss_average = loss.item() if step == start else 0.98 * loss_average + 0.02 * loss.item()
        report(step + 1, f"loss {loss_average:.4f}")
        if (step + 1) % 500 == 0 or step + 1 == steps:
            _save(checkpoint, step + 1, networks, optimizer, schedule)
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            with averaged(networks):
                sample(step + 1)


@contextlib.contextmanager
def averaged(networks: Networks) -> Iterator[None]:
    """The averaged weights are in the networks inside the `with`; the trained ones again after."""
    networks.ema.store(networks.parameters())
    networks.ema.copy_to(networks.parameters())
    networks.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        networks.ema.restore(networks.parameters())
        networks.train(True)


def _batch(
    data: LatentSet, tokenizer: CLIPTokenizer, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    picks = [rng.randrange(len(data.scenes)) for _ in range(BATCH)]
    prompts = ["" if rng.random() < DROP_PROMPT else paraphrase(data.scenes[i], rng) for i in picks]
    return data.latents[picks].float(), tokenize(tokenizer, prompts)


def _stratified_timesteps(count: int) -> torch.Tensor:
    """One timestep in each of `count` parts of 0..999: less noise in the gradient than independent
    draws. The parts are narrower towards pure noise, where a picture's layout is decided.
    """
    spread = (torch.arange(count) + torch.rand(count)) / count
    return (spread**0.6 * 1000).long().clamp(max=999)


def _optimizer(
    networks: Networks, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR]:
    groups = [
        {"params": list(networks.unet.parameters()), "lr": PEAK_RATE},
        {"params": list(networks.text_encoder.parameters()), "lr": PEAK_RATE * TEXT_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [PEAK_RATE, PEAK_RATE * TEXT_RATE],
        total_steps=steps,
        pct_start=0.05,
        cycle_momentum=False,
    )
    return optimizer, schedule


def _save(
    path: Path,
    step: int,
    networks: Networks,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    state = {
        "step": step,
        "unet": networks.unet.state_dict(),
        "text_encoder": networks.text_encoder.state_dict(),
        "ema": networks.ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(
    path: Path,
    networks: Networks,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    networks.unet.load_state_dict(state["unet"])
    networks.text_encoder.load_state_dict(state["text_encoder"])
    networks.ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"])

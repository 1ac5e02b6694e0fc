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
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.training_utils import EMAModel
from transformers import CLIPTextModel, CLIPTokenizer

from tessera_build.demo.draw import Picture, render
from tessera_build.demo.networks import new_scheduler
from tessera_build.demo.readouts import Readouts, label_maps
from tessera_build.demo.scenes import SIZES, Scene, paraphrase, sample_scene
from tessera_build.demo.text_training import tokenize
from tessera_build.demo.vae_training import encode_pictures

BATCH = 16
PEAK_RATE = 1e-3
WARMUP = 200
COOLDOWN = 0.3
"""Share of the steps, at the end, in which the learning rate falls to zero (Hagele et al. 2024);
until then the number of steps may still be changed between two runs."""

TEXT_RATE = 0.5
"""Learning rate of the text encoder, in units of the UNet's."""

DROP_PROMPT = 0.1
"""Share of prompts replaced by the empty one, for classifier-free guidance (Ho & Salimans 2022)."""

EMA_DECAY = 0.9995
LAYOUT_SHARE = 0.2
"""Share of the steps, at the start, that see nearly pure noise only."""

LAYOUT_FROM = 850
"""Timestep above which a picture's layout comes from the prompt alone; below, a shape shows through
the noise, being so much larger than a latent."""

SAVE_EVERY, SAMPLE_EVERY = 500, 1000  # steps
WEIGHTS = (1.0, 0.8, 0.5, 0.2)
"""Of the parts of the loss, in the order of `_losses`.

The second is the error around outlines, whatever a shape's size: a small shape covers 2 % of the
latents, so that its outline and place hardly show in the first."""

_RING = (0.6, 1.65)
"""Where outlines lie, in units of a shape's size: the same for every shape, or the weights would
tell which one it is."""


@dataclass
class LatentSet:
    """Scenes, their latents (n, 4, 32, 32) and where outlines are (n, 32, 32), in half precision.

    `shares` sums to one over the ring around each shape's outline and is zero elsewhere.
    """

    scenes: list[Scene]
    latents: torch.Tensor
    shares: torch.Tensor


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
    draw: Callable[[Scene], Picture] = render,
) -> LatentSet:
    """Draw and encode `count` scenes that are not held out."""
    rng = random.Random(seed)
    scenes: list[Scene] = []
    latents = torch.empty(count, 4, 32, 32, dtype=torch.float16)
    shares = torch.empty(count, 32, 32, dtype=torch.float16)
    while len(scenes) < count:
        chunk = [s for s in (sample_scene(rng) for _ in range(40)) if not s.held_out][
            : count - len(scenes)
        ]
        pictures = torch.stack([torch.from_numpy(draw(s)).permute(2, 0, 1) * 2 - 1 for s in chunk])
        rows = slice(len(scenes), len(scenes) + len(chunk))
        latents[rows] = encode_pictures(vae, pictures.to(device)).cpu().half()
        shares[rows] = torch.stack([_shares(scene) for scene in chunk])
        scenes += chunk
        report(len(scenes))
    return LatentSet(scenes, latents, shares)


def _shares(scene: Scene) -> torch.Tensor:
    centres = (torch.arange(32) + 0.5) * 4  # of the latents, in pixels
    total = torch.zeros(32, 32)
    for item in scene.items:
        x, y = item.centre
        distance = torch.hypot(centres[None, :] - x, centres[:, None] - y) / SIZES[item.size]
        ring = (distance > _RING[0]) & (distance < _RING[1])
        total += ring / ring.sum()
    return total


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
    readouts = Readouts(networks.unet).to(device)
    optimizer = _optimizer(networks, readouts)
    start = _resume(checkpoint, networks, readouts, optimizer, device)
    noise_schedule = DDPMScheduler.from_config(new_scheduler().config)
    average = torch.zeros(4)
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        rng = random.Random(seed * 1_000_003 + step)
        _set_rate(optimizer, step, steps)
        batch = tuple(tensor.to(device) for tensor in make_batch(data, tokenizer, rng))
        lowest = LAYOUT_FROM if step < LAYOUT_SHARE * steps else 0
        losses = _losses(networks, readouts, noise_schedule, batch, lowest)
        loss = (losses * losses.new_tensor(WEIGHTS)).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        networks.ema.step(networks.parameters())
        now = losses.detach()
        average = now if step == start else 0.98 * average + 0.02 * now
        report(
            step + 1,
            f"loss {average[0]:.4f}, at outlines {average[1]:.3f}, of place {average[2]:.3f}, "
            f"of things {average[3]:.3f}",
        )
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            _save(checkpoint, step + 1, networks, readouts, optimizer)
        if (step + 1) % SAMPLE_EVERY == 0 or step + 1 == steps:
            with averaged(networks):
                sample(step + 1)


def _losses(
    networks: Networks,
    readouts: Readouts,
    noise_schedule: DDPMScheduler,
    batch: tuple[torch.Tensor, ...],
    lowest: int,
) -> torch.Tensor:
    """Of a batch at timesteps from `lowest` on: the mean squared error of the velocity, the same at
    outlines, and the readouts' of place and of things.
    """
    latents, shares, labels, ids = batch
    error = velocity_errors(
        networks.unet, networks.text_encoder, noise_schedule, latents, ids, lowest
    )
    with torch.autocast(latents.device.type, dtype=torch.bfloat16):
        place, things = readouts.loss(labels)
    outlines = (error * shares).sum((1, 2)).mean()
    return torch.stack([error.mean(), outlines, place, things])


def velocity_errors(
    unet: Callable[..., UNet2DConditionOutput],
    text_encoder: CLIPTextModel,
    noise_schedule: DDPMScheduler,
    latents: torch.Tensor,
    ids: torch.Tensor,
    lowest: int = 0,
) -> torch.Tensor:
    """Mean squared errors of the velocity (batch, 32, 32) at timesteps from `lowest` on.

    `unet` is one, or a function of noisy latents, timesteps and text states that calls one.
    """
    timesteps = _stratified_timesteps(latents.shape[0], lowest).to(latents.device)
    noise = torch.randn_like(latents)
    noisy = noise_schedule.add_noise(latents, noise, timesteps)
    with torch.autocast(latents.device.type, dtype=torch.bfloat16):
        predicted = unet(noisy, timesteps, text_encoder(ids)[0]).sample
    target = noise_schedule.get_velocity(latents, noise, timesteps)
    return (predicted.float() - target).square().mean(1)


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


def make_batch(
    data: LatentSet, tokenizer: CLIPTokenizer, rng: random.Random
) -> tuple[torch.Tensor, ...]:
    """Latents, shares, label maps and token ids of `BATCH` scenes drawn at random."""
    picks = [rng.randrange(len(data.scenes)) for _ in range(BATCH)]
    prompts = ["" if rng.random() < DROP_PROMPT else paraphrase(data.scenes[i], rng) for i in picks]
    labels = label_maps([data.scenes[i] for i in picks])
    ids = tokenize(tokenizer, prompts)
    return data.latents[picks].float(), data.shares[picks].float(), labels, ids


def _stratified_timesteps(count: int, lowest: int) -> torch.Tensor:
    """One timestep in each of `count` parts of `lowest`..999: less noise in the gradient than
    independent draws.

    The parts are narrower towards pure noise: place, size and outline are decided above 400, where
    84 % of the draws from 0 are.
    """
    spread = (torch.arange(count) + torch.rand(count)) / count
    return (lowest + spread**0.5 * (1000 - lowest)).long().clamp(max=999)


def _optimizer(networks: Networks, readouts: Readouts) -> torch.optim.AdamW:
    groups = [
        {"params": [*networks.unet.parameters(), *readouts.parameters()], "peak": PEAK_RATE},
        {"params": list(networks.text_encoder.parameters()), "peak": PEAK_RATE * TEXT_RATE},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def _set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Warm up, stay, and fall to zero."""
    remaining = min(1.0, (steps - step) / (COOLDOWN * steps))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * min(remaining, (step + 1) / WARMUP)


def _save(
    path: Path,
    step: int,
    networks: Networks,
    readouts: Readouts,
    optimizer: torch.optim.Optimizer,
) -> None:
    state = {
        "step": step,
        "unet": networks.unet.state_dict(),
        "text_encoder": networks.text_encoder.state_dict(),
        "ema": networks.ema.state_dict(),
        "readouts": readouts.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(
    path: Path,
    networks: Networks,
    readouts: Readouts,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    networks.unet.load_state_dict(state["unet"])
    networks.text_encoder.load_state_dict(state["text_encoder"])
    networks.ema.load_state_dict(state["ema"])
    readouts.load_state_dict(state["readouts"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])

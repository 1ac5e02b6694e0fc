"""Trains the demo model's autoencoder on rendered scenes."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL

from tessera_build.demo.draw import render
from tessera_build.demo.scenes import sample_scene

BATCH = 12
PEAK_RATE = 2e-3
KL_WEIGHT = 1e-4
"""Weight of the Kullback-Leibler term per latent value: just enough to keep latents near unit
scale."""


def picture_batch(rng: random.Random, count: int, size: int = 128) -> torch.Tensor:
    """Pictures (count, 3, size, size) in -1..1; a smaller `size` is a random crop."""
    pictures = np.stack([render(sample_scene(rng)) for _ in range(count)])
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
    if size == 128:
        return batch
    x, y = (4 * rng.randrange((128 - size) // 4 + 1) for _ in range(2))
    return batch[:, :, y : y + size, x : x + size].contiguous()


def train_vae(
    vae: AutoencoderKL,
    steps: int,
    *,
    seed: int,
    device: torch.device,
    report: Callable[[int, str], None],
) -> None:
    """Fit L1 + L2 + a little KL; every second step sees crops of 64 pixels.

    Sets `scaling_factor` at the end.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae.to(device).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        target = picture_batch(rng, BATCH, 64 if step % 2 else 128).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            output = vae.decode(posterior.sample()).sample
        error = output.float() - target
        loss = (
            error.abs().mean()
            + error.square().mean()
            + KL_WEIGHT * posterior.kl().float().mean() / posterior.mean[0].numel()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step + 1, f"{_psnr(error):.1f} dB")
    vae.eval()
    vae.register_to_config(scaling_factor=round(1 / _latent_std(vae, rng, device), 4))


def _psnr(error: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1."""
    return float(-10 * torch.log10(error.detach().square().mean() / 4))


@torch.no_grad()
def _latent_std(vae: AutoencoderKL, rng: random.Random, device: torch.device) -> float:
    return float(vae.encode(picture_batch(rng, 128).to(device)).latent_dist.mean.std())


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Latents (n, 4, 32, 32), scaled to unit variance, of pictures (n, 3, 128, 128) in -1..1."""
    mean: torch.Tensor = vae.encode(pictures).latent_dist.mean
    return mean * vae.config.scaling_factor

"""What the trainings beside the frozen demo checkpoint share, those of LoRAs and of ControlNets:
the loop and the loss.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from diffusers import DDPMScheduler

from tessera_build.demo.networks import new_scheduler

WARMUP = 20
OUTLINES = 0.8
"""Weight of the error around outlines beside the whole picture's."""


def fit(
    parameters: Sequence[torch.nn.Parameter],
    loss: Callable[[int, random.Random], torch.Tensor],
    *,
    steps: int,
    peak_rate: float,
    seed: int,
    report: Callable[[int, str], None],
) -> None:
    """Lower `loss`, which draws its own batch of a step; the rate warms up, then falls to zero.

    Both generators, torch's and the one that `loss` gets, begin anew in each step, so that what
    `report` does with them changes nothing.
    """
    optimizer = torch.optim.AdamW(parameters, peak_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    for step in range(steps):
        torch.manual_seed(seed * 1_000_003 + step)
        rng = random.Random(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min((step + 1) / WARMUP, (steps - step) / steps)
        value = loss(step, rng)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step + 1, f"loss {value.item():.4f}")


def noise_schedule() -> DDPMScheduler:
    """The demo model's noise, for training."""
    schedule = DDPMScheduler.from_config(new_scheduler().config)
    assert isinstance(schedule, DDPMScheduler)
    return schedule


def weighted(error: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """One loss of errors (batch, 32, 32) and of where outlines are (batch, 32, 32)."""
    return error.mean() + OUTLINES * (error * shares).sum((1, 2)).mean()

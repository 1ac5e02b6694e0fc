"""Configurations of schedulers, diffusers' own schedulers, and a network that is a formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from tessera.contract import SCHEDULERS

SD15 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}


DEMO = SD15 | {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "beta_end": 0.02}


def diffusers_scheduler(name: str, config: Mapping[str, Any], *, seed: int | None = None) -> Any:
    """Diffusers' scheduler of a name of Tessera's, for a checkpoint's configuration. One that draws
    noise of its own, whatever generator a pipeline has, draws it from the seed.
    """
    spec = SCHEDULERS[name]
    seeded = {"noise_sampler_seed": seed} if spec.base == "dpmpp_sde" else {}
    return getattr(diffusers, spec.cls).from_config(config, **dict(spec.settings), **seeded)


def network(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.sin(latents * 1.3) + float(timestep) / 1000

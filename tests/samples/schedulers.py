"""Configurations of schedulers, and a network that is a formula."""

from __future__ import annotations

import torch

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


def network(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.sin(latents * 1.3) + float(timestep) / 1000

"""Samplers: one diffusers scheduler and one random generator per request.

Diffusers' schedulers keep their state in themselves, so every request owns one. Knows nothing of
networks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import diffusers
import torch

from tessera.contract import SCHEDULERS


class Sampler:
    """Walks one request's latents from noise to picture.

    Args:
        name: a key of `contract.SCHEDULERS`.
        config: the bundle's scheduler config (diffusers' `scheduler_config.json`).
        steps: number of denoising steps.
        seed: of the generator that draws the initial latents and then every later noise, in the
            order of diffusers' pipelines.
    """

    def __init__(self, name: str, config: Mapping[str, Any], *, steps: int, seed: int) -> None:
        self._scheduler = copy.deepcopy(_scheduler(name, json.dumps(dict(config), sort_keys=True)))
        self._scheduler.set_timesteps(steps)
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._extra = {"generator": self._generator} if _takes_generator(self._scheduler) else {}
        self.timesteps: torch.Tensor = self._scheduler.timesteps

    def initial_latents(self, channels: int, height: int, width: int) -> torch.Tensor:
        """Noise (1, channels, height, width) at the first timestep's level; call once, first."""
        noise = torch.randn((1, channels, height, width), generator=self._generator)
        return noise * self._scheduler.init_noise_sigma

    def network_input(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """Latents as the network wants them at step `index`."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self.timesteps[index])
        return scaled

    def step(self, prediction: torch.Tensor, latents: torch.Tensor, index: int) -> torch.Tensor:
        """Latents after step `index`, given the network's (guided) prediction."""
        result = self._scheduler.step(
            prediction, self.timesteps[index], latents, return_dict=False, **self._extra
        )
        after: torch.Tensor = result[0]
        return after


@lru_cache(maxsize=2 * len(SCHEDULERS))
def _scheduler(name: str, config: str) -> Any:
    """A scheduler to copy: to build one from its config takes five times as long."""
    spec = SCHEDULERS[name]
    return getattr(diffusers, spec.cls).from_config(json.loads(config), **dict(spec.settings))


def _takes_generator(scheduler: Any) -> bool:
    code = type(scheduler).step.__code__
    return "generator" in code.co_varnames[: code.co_argcount]

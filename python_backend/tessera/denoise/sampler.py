"""Samplers: one diffusers scheduler and one random generator per request.

A diffusers scheduler keeps its state in itself, so every request has its own. Knows nothing of
networks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from tessera.contract import SCHEDULERS
from tessera.networks.light_diffusers import scheduler_class


class Sampler:
    """Moves one request's latents step by step from noise to image.

    Args:
        name: a key of `contract.SCHEDULERS`.
        config: the bundle's scheduler config (diffusers' `scheduler_config.json`).
        steps: number of denoising steps.
        seed: seed of the generator. It draws the initial noise, then all later noise, in the order
            of diffusers' pipelines.
        first: number of steps to skip. Denoising then starts from a noised image (see `noised`).
    """

    def __init__(
        self, name: str, config: Mapping[str, Any], *, steps: int, seed: int, first: int = 0
    ) -> None:
        self._scheduler = copy.deepcopy(_scheduler(name, json.dumps(dict(config), sort_keys=True)))
        self._scheduler.set_timesteps(steps)
        self._fresh = copy.copy(self._scheduler)  # never steps, so it can add any step's noise
        if first:
            _begin_at(self._scheduler, first)
        self._first = first
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._extra = {"generator": self._generator} if _takes_generator(self._scheduler) else {}
        self.timesteps: torch.Tensor = self._scheduler.timesteps[first:]

    def initial_noise(self, channels: int, height: int, width: int) -> torch.Tensor:
        """Unit noise (1, channels, height, width). Call once, before the first step."""
        return torch.randn((1, channels, height, width), generator=self._generator)

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """Clean latents at the noise level before step `index`; unchanged after the last step.

        Before the first step of the schedule the result is only noise, as in diffusers' pipelines.
        """
        if index == len(self.timesteps):
            return clean
        if self._first + index == 0:
            return noise * self._scheduler.init_noise_sigma
        _begin_at(self._fresh, self._first + index)
        noisy: torch.Tensor = self._fresh.add_noise(clean, noise, self.timesteps[index : index + 1])
        return noisy

    def template_input(self, clean: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """The network's input for a noised template at step `index`, independent of past steps."""
        noisy = self.noised(clean, noise, index)
        scheduler = copy.copy(self._fresh)
        _begin_at(scheduler, self._first + index)
        scaled: torch.Tensor = scheduler.scale_model_input(noisy, self.timesteps[index])
        return scaled

    def network_input(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """Latents scaled for the network at step `index`."""
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
    """A scheduler to copy. Building one from its config takes five times as long as copying."""
    spec = SCHEDULERS[name]
    return scheduler_class(spec.cls).from_config(json.loads(config), **dict(spec.settings))


def _begin_at(scheduler: Any, index: int) -> None:
    """Set which timestep comes next. A scheduler without this method does not need it."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)


def _takes_generator(scheduler: Any) -> bool:
    code = type(scheduler).step.__code__
    return "generator" in code.co_varnames[: code.co_argcount]

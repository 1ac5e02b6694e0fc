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

import torch

from tessera.contract import SCHEDULERS
from tessera.networks.light_diffusers import scheduler_class


class Sampler:
    """Walks one request's latents from noise to picture.

    Args:
        name: a key of `contract.SCHEDULERS`.
        config: the bundle's scheduler config (diffusers' `scheduler_config.json`).
        steps: number of denoising steps.
        seed: of the generator that draws the initial noise and then every later noise, in the
            order of diffusers' pipelines.
        first: steps that are skipped; the walk then starts from a noised picture (see `noised`).
    """

    def __init__(
        self, name: str, config: Mapping[str, Any], *, steps: int, seed: int, first: int = 0
    ) -> None:
        self._scheduler = copy.deepcopy(_scheduler(name, json.dumps(dict(config), sort_keys=True)))
        self._scheduler.set_timesteps(steps)
        self._fresh = copy.copy(self._scheduler)  # never steps, so that it adds any step's noise
        if first:
            _begin_at(self._scheduler, first)
        self._first = first
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._extra = {"generator": self._generator} if _takes_generator(self._scheduler) else {}
        self.timesteps: torch.Tensor = self._scheduler.timesteps[first:]

    def initial_noise(self, channels: int, height: int, width: int) -> torch.Tensor:
        """Unit noise (1, channels, height, width); call once, before the first step."""
        return torch.randn((1, channels, height, width), generator=self._generator)

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """Clean latents at the noise level before step `index`; after the last step, as they are.

        Before the very first step of the schedule it is noise alone, as in diffusers' pipelines.
        """
        if index == len(self.timesteps):
            return clean
        if self._first + index == 0:
            return noise * self._scheduler.init_noise_sigma
        _begin_at(self._fresh, self._first + index)
        noisy: torch.Tensor = self._fresh.add_noise(clean, noise, self.timesteps[index : index + 1])
        return noisy

    def template_input(self, clean: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """What the network gets of a noised template at step `index`, whatever has been stepped."""
        noisy = self.noised(clean, noise, index)
        scheduler = copy.copy(self._fresh)
        _begin_at(scheduler, self._first + index)
        scaled: torch.Tensor = scheduler.scale_model_input(noisy, self.timesteps[index])
        return scaled

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
    return scheduler_class(spec.cls).from_config(json.loads(config), **dict(spec.settings))


def _begin_at(scheduler: Any, index: int) -> None:
    """Say which of the timesteps comes next; a scheduler that has no such method needs none."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)


def _takes_generator(scheduler: Any) -> bool:
    code = type(scheduler).step.__code__
    return "generator" in code.co_varnames[: code.co_argcount]

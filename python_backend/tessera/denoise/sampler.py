"""Samplers: one diffusers scheduler and one random generator per request.

A diffusers scheduler keeps its state in itself, so every request has its own. Knows nothing of
networks.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from tessera.contract import SCHEDULERS, SchedulerSpec
from tessera.networks.schedulers import new_scheduler


class Sampler:
    """Moves one request's latents, evaluation by evaluation, from noise to image.

    An index counts evaluations of the network from 0, the first that is run. Some samplers evaluate
    it twice in a step, or take their first step twice.

    Args:
        name: a key of `contract.SCHEDULERS`.
        config: the bundle's scheduler config (diffusers' `scheduler_config.json`).
        steps: number of denoising steps.
        seed: seed of the generator. It draws the initial noise, then all later noise, in the order
            of diffusers' pipelines. DPM-Solver++ SDE's noise comes from a Brownian tree of this
            seed.
        first: number of steps to skip. Denoising then starts from a noised image (see `noised`).

    Attributes:
        timesteps: of the evaluations to run.
        evaluations: how many these are; a tensor's length costs more where caches are cold.
        predicted: clean latents that the last prediction amounts to; `None` before it.
    """

    def __init__(
        self, name: str, config: Mapping[str, Any], *, steps: int, seed: int, first: int = 0
    ) -> None:
        self._spec = SCHEDULERS[name]
        self._scheduler = copy.deepcopy(new_scheduler(name, config))
        self._quiet: Callable[[], AbstractContextManager[None]] = nullcontext
        if hasattr(self._scheduler, "noise_sampler_seed"):
            self._scheduler.noise_sampler_seed = seed
            self._quiet = _without_warnings
        self._scheduler.set_timesteps(steps)
        self._fresh = copy.copy(self._scheduler)  # never steps, so it can add any step's noise
        timesteps = _existing(self._scheduler)
        self._places = _places(self._spec, len(timesteps), steps, first)
        if first:
            _begin_at(self._scheduler, self._places[0])
        self._steps = steps - first
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._extra: dict[str, Any] = {}
        if _takes_generator(self._scheduler):
            self._extra["generator"] = self._generator
        self.timesteps: torch.Tensor = timesteps[self._places]
        self.evaluations: int = len(self._places)
        self.predicted: torch.Tensor | None = None

    def initial_noise(self, channels: int, height: int, width: int) -> torch.Tensor:
        """Unit noise (1, channels, height, width). Call once, before the first step."""
        return torch.randn((1, channels, height, width), generator=self._generator)

    def finished(self, evaluations: int) -> int:
        """How many steps are finished after that many evaluations."""
        return self._spec.finished(min(evaluations, self.evaluations), self._steps)

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """Clean latents at the noise level before evaluation `index`; unchanged after the last.

        Before the first step of the schedule the result is only noise, as in diffusers' pipelines.
        """
        if index == self.evaluations:
            return clean
        if self._places[index] == 0:
            return noise * self._scheduler.init_noise_sigma
        if (sigma := self._between(index)) is not None:
            return clean + noise * sigma
        _begin_at(self._fresh, self._places[index])
        noisy: torch.Tensor = self._fresh.add_noise(clean, noise, self.timesteps[index : index + 1])
        return noisy

    def template_input(self, clean: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """The network's input for a noised template at evaluation `index`, independent of those
        before.
        """
        noisy = self.noised(clean, noise, index)
        if (sigma := self._between(index)) is not None:
            return noisy / (sigma**2 + 1) ** 0.5
        scheduler = copy.copy(self._fresh)
        _begin_at(scheduler, self._places[index])
        scaled: torch.Tensor = scheduler.scale_model_input(noisy, self.timesteps[index])
        return scaled

    def network_input(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """Latents scaled for the network at evaluation `index`."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self.timesteps[index])
        return scaled

    def step(self, prediction: torch.Tensor, latents: torch.Tensor, index: int) -> torch.Tensor:
        """Latents after evaluation `index`, given the network's (guided) prediction."""
        timestep = self.timesteps[index]
        if self._spec.cls == "LMSDiscreteScheduler":
            # Diffusers takes the order from the place in the schedule. An edit that starts within
            # it has fewer derivatives than that.
            self._extra["order"] = min(index + 1, _LMS_ORDER)
        with self._quiet():
            result = self._scheduler.step(
                prediction, timestep, latents, return_dict=False, **self._extra
            )
        after: torch.Tensor = result[0]
        if self._spec.cls in _SILENT:
            self.predicted = _clean(self._scheduler, prediction, latents, timestep)
        else:  # multistep samplers do not return the clean latents, but keep them for the next step
            self.predicted = result[1] if len(result) > 1 else self._scheduler.model_outputs[-1]
        return after

    def _between(self, index: int) -> torch.Tensor | None:
        """The noise level of an evaluation that is half-way between two of the schedule."""
        place = self._places[index]
        if not self._spec.midpoint or place % 2 == 0:
            return None
        pair: torch.Tensor = self._fresh.sigmas[place - 1 : place + 1]
        return pair.log().mean().exp()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without torchsde's, of bounds that it rounds itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Should have t[ab]")
        yield


_LMS_ORDER = 4
"""Diffusers' default."""
_SILENT = ("PNDMScheduler", "TCDScheduler")
"""Classes that do not tell the clean latents."""


def _existing(scheduler: Any) -> torch.Tensor:
    """The schedule's timesteps. For some numbers of steps (61, 103 ...) diffusers' trailing spacing
    adds -1, which a sampler that looks up its noise level by timestep would take for the noisiest.
    """
    timesteps: torch.Tensor = scheduler.timesteps
    return timesteps if hasattr(scheduler, "sigmas") else timesteps[timesteps >= 0]


def _places(spec: SchedulerSpec, count: int, steps: int, first: int) -> list[int]:
    """Places of the evaluations to run among `count` of the whole schedule. Those beyond what the
    number of steps needs (see `_existing`) come last.
    """
    return [*spec.evaluations(steps, first), *range(spec.count(steps), count)]


def _clean(
    scheduler: Any, prediction: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Clean latents that a prediction amounts to (Salimans & Ho 2022, appendix D)."""
    share = scheduler.alphas_cumprod[timestep.long()]
    if scheduler.config.prediction_type == "v_prediction":
        return share.sqrt() * latents - (1 - share).sqrt() * prediction
    if scheduler.config.prediction_type == "sample":
        return prediction
    return (latents - (1 - share).sqrt() * prediction) / share.sqrt()


def _begin_at(scheduler: Any, index: int) -> None:
    """Set which timestep comes next. A scheduler without this method does not need it."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)


def _takes_generator(scheduler: Any) -> bool:
    code = type(scheduler).step.__code__
    return "generator" in code.co_varnames[: code.co_argcount]

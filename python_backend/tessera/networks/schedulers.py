"""Samplers of a bundle: diffusers' schedulers by the names that requests use.

Knows configurations, nothing of requests.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any

import torch

from tessera.contract import SCHEDULERS
from tessera.networks.light_diffusers import scheduler_class

_TRIAL_STEPS = 4


def new_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler. It is shared: copy it before use.

    Args:
        name: a key of `contract.SCHEDULERS`.
        config: the bundle's scheduler config.
    """
    return _scheduler(name, json.dumps(dict(config), sort_keys=True))


@lru_cache(maxsize=2 * len(SCHEDULERS))
def _scheduler(name: str, config: str) -> Any:
    """Building one from its config takes five times as long as copying it."""
    spec = SCHEDULERS[name]
    return scheduler_class(spec.cls).from_config(json.loads(config), **dict(spec.settings))


def usable(config: Mapping[str, Any]) -> dict[str, str]:
    """For each sampler the reason why a config cannot be used with it; empty if it can.

    A sampler is tried on zeros, since diffusers finds out about some settings in the first step.
    """
    edm = str(config.get("_class_name", "")).startswith("EDM")
    zero = bool(config.get("rescale_betas_zero_snr"))
    reasons = {}
    for name, spec in SCHEDULERS.items():
        if spec.edm != edm:
            trained = "EDM (Karras et al. 2022)" if edm else "no EDM network"
            reasons[name] = f"the checkpoint is {trained}"
        elif zero and "rescale_betas_zero_snr" not in _parameters(spec.cls):
            reasons[name] = "it does not know zero terminal SNR"
        else:
            reasons[name] = _trial(name, config)
    return reasons


def native(config: Mapping[str, Any]) -> str | None:
    """The sampler that a config is for; `None` if requests cannot name it.

    Not PNDM either: many a checkpoint names it because it was diffusers' first sampler.
    """
    cls = config.get("_class_name")
    alike = {n: spec for n, spec in SCHEDULERS.items() if spec.cls == cls and not spec.repeats}
    for name, spec in alike.items():
        defaults = _parameters(spec.cls)
        if all(config.get(key, defaults[key].default) == value for key, value in spec.settings):
            return name
    return next(iter(alike), None)


def _parameters(cls: str) -> Mapping[str, Parameter]:
    return signature(scheduler_class(cls).__init__).parameters


def _trial(name: str, config: Mapping[str, Any]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = scheduler_class(SCHEDULERS[name].cls).from_config(
                dict(config), **dict(SCHEDULERS[name].settings)
            )
            scheduler.set_timesteps(_TRIAL_STEPS)
            latents = torch.zeros(1, 4, 8, 8)
            for timestep in scheduler.timesteps:
                scheduler.scale_model_input(latents, timestep)
                latents = scheduler.step(latents, timestep, latents, return_dict=False)[0]
    except Exception as error:  # schedulers raise whatever their libraries do
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return "" if bool(latents.isfinite().all()) else "it gives values that are not finite"

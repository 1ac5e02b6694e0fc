"""Samplers against diffusers' own loop, step by step, on a made-up network."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from tessera.contract import SCHEDULERS
from tessera.denoise.sampler import Sampler
from tests.samples.schedulers import DEMO, SD15, network


def by_diffusers(name: str, config: dict[str, Any], steps: int, seed: int) -> torch.Tensor:
    """The loop of diffusers' StableDiffusionPipeline, without a pipeline."""
    spec = SCHEDULERS[name]
    kind = getattr(diffusers, spec.cls)
    scheduler = kind.from_config(config, **dict(spec.settings))
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn((1, 4, 8, 8), generator=generator) * scheduler.init_noise_sigma
    stochastic = name in ("euler_ancestral", "lcm", "ddim", "euler", "dpmpp_2m", "dpmpp_2m_karras")
    extra = {"generator": generator} if stochastic else {}
    for t in scheduler.timesteps:
        prediction = network(scheduler.scale_model_input(latents, t), t)
        latents = scheduler.step(prediction, t, latents, return_dict=False, **extra)[0]
    return latents


def by_tessera(name: str, config: dict[str, Any], steps: int, seed: int) -> torch.Tensor:
    sampler = Sampler(name, config, steps=steps, seed=seed)
    noise = sampler.initial_noise(4, 8, 8)
    latents = sampler.noised(noise, noise, 0)
    for i, t in enumerate(sampler.timesteps):
        latents = sampler.step(network(sampler.network_input(latents, i), t), latents, i)
    return latents


@pytest.mark.parametrize("config", [SD15, DEMO], ids=["sd15", "demo"])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_walks_as_diffusers_does(name: str, steps: int, config: dict[str, Any]) -> None:
    expected = by_diffusers(name, config, steps, seed=3)
    assert torch.equal(by_tessera(name, config, steps, seed=3), expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_takes_as_many_steps_as_the_contract_allows(name: str) -> None:
    most = SCHEDULERS[name].max_steps
    sampler = Sampler(name, DEMO, steps=most, seed=0)
    assert len(sampler.timesteps) == most
    latents = sampler.initial_noise(4, 4, 4)
    for i in range(3):
        latents = sampler.step(torch.zeros_like(latents), latents, i)
    assert latents.isfinite().all()


def test_two_samplers_do_not_share_state() -> None:
    first = Sampler("dpmpp_2m", DEMO, steps=5, seed=1)
    second = Sampler("dpmpp_2m", DEMO, steps=5, seed=1)
    a, b = first.initial_noise(4, 4, 4), second.initial_noise(4, 4, 4)
    for i in range(5):
        a = first.step(a, a, i)
    for i in range(5):
        b = second.step(b, b, i)
    assert torch.equal(a, b)

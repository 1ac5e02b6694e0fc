"""Samplers against diffusers' own loop, step by step, on a made-up network."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch

from tessera.contract import SCHEDULERS, SPREADS, Scheduler
from tessera.denoise.sampler import Sampler
from tests.samples.schedulers import DEMO, SD15, diffusers_scheduler, network

pytestmark = pytest.mark.filterwarnings("ignore:Should have t[ab]")  # torchsde's, in diffusers


def by_diffusers(name: str, config: dict[str, Any], steps: int, seed: int) -> torch.Tensor:
    """The loop of diffusers' StableDiffusionPipeline, without a pipeline."""
    scheduler = diffusers_scheduler(name, config, seed=seed)
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn((1, 4, 8, 8), generator=generator) * scheduler.init_noise_sigma
    stochastic = "generator" in inspect.signature(scheduler.step).parameters  # as pipelines ask
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
@pytest.mark.parametrize("name", SCHEDULERS)
def test_walks_as_diffusers_does(name: str, config: dict[str, Any]) -> None:
    for steps in (2, 7, 20) if SCHEDULERS[name].spread else (1, 2, 7, 20, 50):
        expected = by_diffusers(name, config, steps, seed=3)
        assert torch.equal(by_tessera(name, config, steps, seed=3), expected)
        assert expected.isfinite().all()


def test_every_sampler_has_a_name_in_the_contract() -> None:
    assert list(SCHEDULERS) == [str(name) for name in Scheduler]
    for name, spec in SCHEDULERS.items():
        assert name == f"{spec.base}_{spec.spread}".rstrip("_")


def test_variants_differ_from_each_other() -> None:
    ways = {"", *SPREADS}
    schedules = {
        way: Sampler(f"heun_{way}".rstrip("_"), SD15, steps=6, seed=0).timesteps for way in ways
    }
    for one, other in itertools.combinations(ways, 2):
        assert not torch.equal(schedules[one], schedules[other])


@pytest.mark.parametrize("name", [n for n, spec in SCHEDULERS.items() if not spec.spread])
@pytest.mark.parametrize("first", [0, 1, 4, 6])
def test_steps_and_evaluations(name: str, first: int) -> None:
    """Each step ends once, and the last one with the last evaluation."""
    sampler = Sampler(name, SD15, steps=7, seed=0, first=first)
    evaluations = len(sampler.timesteps)
    assert evaluations == SCHEDULERS[name].count(7 - first)
    done = [sampler.finished(n) for n in range(evaluations + 1)]
    assert done[0] == 0
    assert done[-2:] == [6 - first, 7 - first]
    assert {b - a for a, b in itertools.pairwise(done)} <= {0, 1}


@pytest.mark.parametrize("steps", [61, 103])
def test_steps_for_which_diffusers_has_a_timestep_too_many(steps: int) -> None:
    """Its trailing spacing ends with -1: of samplers without noise levels that is the noisiest."""
    for name in ("ddim_trailing", "euler_trailing", "heun_trailing"):
        sampler = Sampler(name, SD15, steps=steps, seed=0)
        assert len(sampler.timesteps) >= SCHEDULERS[name].count(steps)
        assert sampler.finished(len(sampler.timesteps)) == steps
    assert Sampler("ddim_trailing", SD15, steps=steps, seed=0).timesteps.min() > 0


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("name", [n for n, spec in SCHEDULERS.items() if not spec.spread])
def test_a_templates_input_is_that_of_its_noise_level(name: str, first: int) -> None:
    """At every evaluation, also half-way between two levels: what the sampler itself would give to
    the network, if all of the picture was the template.
    """
    sampler = Sampler(name, SD15, steps=5, seed=0, first=first)
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = sampler.noised(clean, noise, 0)
    for index, timestep in enumerate(sampler.timesteps):
        noised = sampler.noised(clean, noise, index)
        given = sampler.network_input(noised, index)
        expected = sampler.template_input(clean, noise, index)
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)
        latents = sampler.step(network(latents, timestep), latents, index)
    assert torch.equal(sampler.noised(clean, noise, len(sampler.timesteps)), clean)


def test_noise_of_a_brownian_tree_is_the_seeds() -> None:
    one, again, other = (by_tessera("dpmpp_sde", SD15, 5, seed) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_takes_as_many_steps_as_the_contract_allows(name: str) -> None:
    most = SCHEDULERS[name].max_steps
    sampler = Sampler(name, DEMO, steps=most, seed=0)
    assert len(sampler.timesteps) == SCHEDULERS[name].count(most)
    latents = sampler.initial_noise(4, 4, 4)
    for i in range(3):
        sampler.network_input(latents, i)
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


def edm_prediction(scheduler: Any, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """What an EDM network predicts where it sees the clean latents: these are linear in it."""
    sigma = scheduler.sigmas[scheduler.step_index]
    skipped = scheduler.precondition_outputs(noisy, torch.zeros_like(noisy), sigma)
    share = scheduler.precondition_outputs(noisy, torch.ones_like(noisy), sigma) - skipped
    return (clean - skipped) / share


@pytest.mark.parametrize("config", [SD15, DEMO], ids=["sd15", "demo"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_clean_latents_that_a_prediction_amounts_to(name: str, config: dict[str, Any]) -> None:
    """With the noise that was added as the prediction, they are what it was added to."""
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 8, 8)
    sampler = Sampler(name, config, steps=10, seed=3, first=4)
    assert sampler.predicted is None
    noisy = sampler.noised(clean, noise, 0)
    sampler.network_input(noisy, 0)
    if SCHEDULERS[name].edm:
        prediction = edm_prediction(sampler._scheduler, noisy, clean)
    elif config.get("prediction_type") == "v_prediction":
        alphas = sampler._scheduler.alphas_cumprod
        share = alphas[sampler.timesteps[0].long()]
        prediction = share.sqrt() * noise - (1 - share).sqrt() * clean
    else:
        prediction = noise
    sampler.step(prediction, noisy, 0)
    assert sampler.predicted is not None
    torch.testing.assert_close(sampler.predicted, clean, atol=2e-2, rtol=0)

"""Soft masks: the walk of latents against the paper's loop, and hard masks as the special case."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera.denoise.canvas import canvas_of
from tessera.denoise.running import Running, start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tests.samples.plans import plan
from tests.samples.schedulers import DEMO, SD15, diffusers_scheduler, network

SHAPE = (4, 8, 12)
CLEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


def edited(
    name: str, config: Any, mask: torch.Tensor, *, steps: int, first: int, soft: bool
) -> Any:
    """The latents of an edit with seed 3."""
    wanted = plan(guidance=1.0, steps=steps, first_step=first, template="t", soft=soft)
    sampler = Sampler(name, config, steps=steps, seed=3, first=first)
    canvas = canvas_of(CLEAN, mask, soft=soft)
    request: Running = start(wanted, {}, sampler, shape=SHAPE, canvas=canvas)
    for number in range(len(sampler.timesteps)):
        tick([request], lambda s, t, c, join: network(s, t[0]), number)
    assert request.error is None
    assert request.finished
    return request.latents


@pytest.mark.parametrize("config", [SD15, DEMO], ids=["sd15", "demo"])
@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m", "heun"])
def test_latents_go_the_way_of_the_published_code(name: str, config: dict[str, Any]) -> None:
    """Its loop, from the authors' pipeline: `mask = map > thresholds[i]`, then `latents =
    original_with_noise[i] * mask + latents * (1 - mask)`; `map` is one minus the strength.
    """
    strengths = torch.arange(1, 97).reshape(8, 12) * 255 // 96
    steps, first = 10, 3
    scheduler, fresh = (diffusers_scheduler(name, config) for _ in range(2))
    for each in (scheduler, fresh):
        each.set_timesteps(steps)
    timesteps = scheduler.timesteps[first * scheduler.order :]
    if name != "ddim":
        scheduler.set_begin_index(first * scheduler.order)
    noise = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(3))
    originals = []
    for place, t in enumerate(timesteps, first * scheduler.order):
        if name != "ddim":
            fresh.set_begin_index(place)
        originals.append(fresh.add_noise(CLEAN[None], noise, t[None]))
    thresholds = torch.arange(len(timesteps)) / len(timesteps)
    masks = (1 - strengths / 255)[None] > thresholds[:, None, None]
    latents = originals[0]
    for i, t in enumerate(timesteps):
        if i:
            mask = masks[i].float()
            latents = originals[i] * mask + latents * (1 - mask)
        prediction = network(scheduler.scale_model_input(latents, t), t)
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    found = edited(name, config, strengths.byte(), steps=steps, first=first, soft=True)
    torch.testing.assert_close(found, latents, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m_karras", "heun", "euler_ancestral"])
def test_a_soft_mask_of_all_or_nothing_is_a_hard_one_bit_for_bit(name: str, first: int) -> None:
    active = torch.zeros(8, 12, dtype=torch.uint8)
    active[2:5, 3:9] = 1
    hard = edited(name, DEMO, active, steps=8, first=first, soft=False)
    soft = edited(name, DEMO, 255 * active, steps=8, first=first, soft=True)
    assert torch.equal(hard, soft)


def test_the_least_strength_edits_in_the_last_step_and_none_does_not() -> None:
    strengths = torch.zeros(8, 12, dtype=torch.uint8)
    strengths[:, 6] = 1
    moved = (edited("euler", DEMO, strengths, steps=10, first=0, soft=True)[0] != CLEAN).all((0, 1))
    assert moved.tolist() == [column == 6 for column in range(12)]

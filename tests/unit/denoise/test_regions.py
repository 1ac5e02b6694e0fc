"""Several prompts in one picture: what their branches are mixed to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera.denoise.canvas import canvas_of
from tessera.denoise.running import start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tests.samples.plans import plan
from tests.samples.schedulers import DEMO

SHAPE = (4, 8, 12)
CLEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
ACTIVE = torch.ones(8, 12, dtype=torch.uint8)


def network(sample: torch.Tensor, timestep: torch.Tensor, conditions: Any, join: Any) -> Any:
    text = conditions["encoder_hidden_states"][:, 0, :1, None, None]
    return torch.sin(sample * 1.3 + text) + timestep[:, None, None, None] / 1000


def latents_of(
    texts: list[float], guidance: float, weights: torch.Tensor | None = None, active: Any = ACTIVE
) -> torch.Tensor:
    """Of an edit whose branches have these texts."""
    conditions = {"encoder_hidden_states": torch.tensor(texts)[:, None, None]}
    prompts = 1 if weights is None else len(weights)
    wanted = plan(guidance=guidance, steps=6, template="t", prompt_count=prompts)
    sampler = Sampler("euler", DEMO, steps=6, seed=3)
    canvas = canvas_of(CLEAN, active)
    request = start(wanted, conditions, sampler, shape=SHAPE, canvas=canvas, weights=weights)
    assert request.branches == len(texts)
    for number in range(6):
        tick([request], network, number)
    assert request.error is None
    return request.latents[0]


@pytest.mark.parametrize("negative", [[], [0.2]], ids=["alone", "guided"])
def test_each_latent_follows_its_own_prompt(negative: list[float]) -> None:
    guidance = 4.0 if negative else 1.0
    weights = torch.zeros(2, 8, 12)
    weights[0, :, :6] = weights[1, :, 6:] = 1
    mixed = latents_of([*negative, 0.5, 0.9], guidance, weights)
    first = latents_of([*negative, 0.5], guidance)
    second = latents_of([*negative, 0.9], guidance)
    torch.testing.assert_close(mixed[..., :6], first[..., :6])
    torch.testing.assert_close(mixed[..., 6:], second[..., 6:])
    assert not torch.allclose(first, second)


def test_equal_prompts_are_one() -> None:
    weights = torch.rand(1, 8, 12)
    weights = torch.cat([weights, 1 - weights])
    both = latents_of([0.2, 0.5, 0.5], 4.0, weights)
    torch.testing.assert_close(both, latents_of([0.2, 0.5], 4.0))

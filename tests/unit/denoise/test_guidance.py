"""UNets that take the guidance scale as an input, against diffusers' pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler, UNet2DConditionModel

from tessera.denoise.unet import embed_guidance
from tests.fakes.checkpoint import randomised, topology
from tests.samples.drawing import by_diffusers, draw
from tests.samples.plans import plan


def distilled(variant: str) -> DiffusionPipeline:
    """A checkpoint whose UNet takes the guidance scale."""
    pipe = topology(variant)
    torch.manual_seed(1)
    config = dict(pipe.unet.config) | {"time_cond_proj_dim": 32}
    unet = randomised(UNet2DConditionModel.from_config(config))
    pipe.register_modules(unet=unet)
    return pipe


@pytest.mark.parametrize("width", [32, 256, 33])
def test_the_embedding_is_diffusers_own(width: int) -> None:
    pipe = topology("sd15")
    for scale in (1.0, 3.5, 8.0):
        expected = pipe.get_guidance_scale_embedding(torch.tensor([scale - 1]), width)
        found = embed_guidance(scale, width)
        assert found is not None
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert embed_guidance(3.0, 0) is None


def test_there_is_no_negative_branch() -> None:
    assert plan(guidance=8.0).guided
    assert not plan(guidance=8.0, embedded=True).guided


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
@pytest.mark.parametrize(("name", "kind"), [("lcm", LCMScheduler), ("ddim", DDIMScheduler)])
def test_pictures_are_diffusers_pictures(variant: str, name: str, kind: Any) -> None:
    pipe = distilled(variant)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, clip_sample=False)
    sampling: dict[str, Any] = {"steps": 4, "guidance": 6.0, "seed": 5}
    expected = by_diffusers(pipe, **sampling).astype(int)
    found = draw(pipe, variant, name, **sampling).astype(int)
    assert np.abs(found - expected).max() <= 2
    other = draw(pipe, variant, name, **(sampling | {"guidance": 2.0})).astype(int)
    assert np.abs(other - expected).max() > 4, "the scale has no effect"

"""Whole pictures with ControlNets of several kinds, against diffusers' pipelines on the same
weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from torch import nn

from tessera import contract
from tessera.controls.fanout import FanOut
from tessera.denoise.running import RunningControl
from tessera.plan import ControlUse
from tessera.requests.controls import Control, prepared
from tessera.requests.preprocess import Preparation
from tessera.types import Array
from tessera.variants import VARIANTS
from tests.fakes.checkpoint import controlnet, topology
from tests.fakes.controlnets import HINTS, union
from tests.samples.controls import ask_of
from tests.samples.drawing import by_diffusers, draw
from tests.samples.images import noise_blocks

SAMPLING: dict[str, Any] = {"steps": 4, "guidance": 4.0, "seed": 7}
IMAGE = np.asarray(noise_blocks(3, 128, 128))
SCHEDULER = {"sd15": "ddim", "sdxl": "euler"}
MASK = np.zeros((128, 128), np.uint8)
MASK[40:100, 30:90] = 255


def ours(
    variant: str, networks: dict[str, nn.Module], *controls: RunningControl, **sampling: Any
) -> Array:
    pipe = pipeline(variant)
    fan_out = FanOut(ask_of(networks, VARIANTS[variant]))
    return draw(
        pipe,
        variant,
        SCHEDULER[variant],
        controls=controls,
        fan_out=fan_out,
        **(SAMPLING | sampling),
    ).astype(int)


def pipeline(variant: str) -> Any:
    pipe = topology(variant)
    if variant == "sd15":
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            pipe.scheduler.config, clip_sample=False
        )
    return pipe


def theirs(variant: str, networks: Any, image: Any, **options: Any) -> Array:
    kinds: dict[str, Any] = {
        "sd15": diffusers.StableDiffusionControlNetPipeline,
        "sdxl": diffusers.StableDiffusionXLControlNetPipeline,
        "union": diffusers.StableDiffusionXLControlNetUnionPipeline,
    }
    kind = kinds["union" if "control_mode" in options else variant]
    given = {"control_image": image} if "control_mode" in options else {"image": image}
    pipe = kind.from_pipe(pipeline(variant), controlnet=networks)
    return by_diffusers(pipe, **(SAMPLING | given | options)).astype(int)


def control(image: Array = IMAGE, **use: Any) -> RunningControl:
    fields: dict[str, Any] = {"name": "edges", "scale": 0.8, "start": 0.0, "end": 1.0} | use
    return RunningControl(ControlUse(**fields), 1, torch.from_numpy(image.copy()))


def apart(one: Array, other: Array) -> int:
    return int(np.abs(one - other).max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
@pytest.mark.parametrize("guidance", [4.0, 1.0], ids=["guided", "unguided"])
def test_guess_mode(variant: str, guidance: float) -> None:
    network = controlnet(topology(variant).unet, **HINTS)
    picture = diffusers.utils.load_image(noise_blocks(3, 128, 128))
    expected = theirs(
        variant,
        network,
        picture,
        guess_mode=True,
        controlnet_conditioning_scale=0.8,
        guidance=guidance,
    )
    networks: dict[str, nn.Module] = {"edges": network}
    found = ours(variant, networks, control(guess_mode=True), guidance=guidance)
    assert apart(found, expected) <= 2
    assert apart(ours(variant, networks, control(), guidance=guidance), expected) > 4


@pytest.mark.filterwarnings("ignore")
def test_pooled_residuals_guide_the_prompts_branch_only() -> None:
    network = controlnet(topology("sd15").unet, **HINTS)
    network.register_to_config(global_pool_conditions=True)
    picture = diffusers.utils.load_image(noise_blocks(3, 128, 128))
    expected = theirs("sd15", network, picture, controlnet_conditioning_scale=0.8)
    networks: dict[str, nn.Module] = {"edges": network}
    assert apart(ours("sd15", networks, control(pooled=True)), expected) <= 2
    assert apart(ours("sd15", networks, control()), expected) > 4


@pytest.mark.filterwarnings("ignore")
def test_a_union_by_its_mode() -> None:
    network = union(topology("sdxl").unet)
    picture = diffusers.utils.load_image(noise_blocks(3, 128, 128))
    expected = theirs("sdxl", network, picture, control_mode=[3], controlnet_conditioning_scale=0.8)
    networks: dict[str, nn.Module] = {"edges": network}
    mode = contract.CONTROL_MODES["canny"]
    assert apart(ours("sdxl", networks, control(mode=mode)), expected) <= 2
    assert apart(ours("sdxl", networks, control(mode=mode + 1)), expected) > 4


@pytest.mark.filterwarnings("ignore")
def test_two_controls_of_one_union_add_up() -> None:
    """With modes, pictures, scales and windows of their own."""
    network = union(topology("sdxl").unet)
    pictures = [noise_blocks(seed, 128, 128) for seed in (3, 4)]
    expected = theirs(
        "sdxl",
        MultiControlNetUnionModel([network, network]),
        [diffusers.utils.load_image(each) for each in pictures],
        control_mode=[3, 1],
        controlnet_conditioning_scale=[0.8, 0.5],
        control_guidance_end=[1.0, 0.5],
    )
    first = control(mode=3)
    second = control(np.asarray(pictures[1]), mode=1, scale=0.5, end=0.5)
    second = dataclasses.replace(second, key=2)
    networks: dict[str, nn.Module] = {"edges": network}
    assert apart(ours("sdxl", networks, first, second), expected) <= 2
    assert apart(ours("sdxl", networks, first), expected) > 4


@pytest.mark.filterwarnings("ignore")
def test_pixels_that_a_mask_hides_are_minus_one() -> None:
    """As `make_inpaint_condition` of diffusers' documentation makes them."""
    network = controlnet(topology("sd15").unet, **HINTS)
    condition = IMAGE.astype(np.float32) / 255
    condition[MASK / 255.0 > 0.5] = -1.0
    tensor = torch.from_numpy(condition).permute(2, 0, 1)[None]
    with torch.no_grad():  # random weights see too little of an image
        for parameter in network.controlnet_cond_embedding.parameters():
            parameter.mul_(3)
    scale = 0.8
    expected = theirs("sd15", network, tensor, controlnet_conditioning_scale=scale)
    use = ControlUse("edges", scale, 0.0, 1.0)
    asked = (
        Control(use, IMAGE, Preparation("inpaint")),
        Control(use, IMAGE, Preparation()),
    )
    hidden, shown = prepared(asked, 128, 128, MASK)
    assert hidden.shape == (128, 128, 4)
    networks: dict[str, nn.Module] = {"edges": network}
    assert apart(ours("sd15", networks, control(hidden, scale=scale)), expected) <= 2
    whole = ours("sd15", networks, control(scale=scale))
    assert apart(ours("sd15", networks, control(shown, scale=scale)), whole) == 0
    assert apart(whole, expected) > 4

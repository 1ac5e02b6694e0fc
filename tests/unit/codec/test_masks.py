"""Edits: their inputs, canvas, feathering, and the whole walk against diffusers' inpainting
loop.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.codec.masks import (
    FEATHER,
    TONE,
    active_latents,
    paste,
    toned,
)
from tessera.contract import EDITED, SCHEDULERS
from tessera.contract.limits import MAX_FEATHER
from tessera.denoise.canvas import TEMPLATE_SEED, canvas_of
from tessera.denoise.running import start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tessera.errors import InvalidInput
from tessera.feather import share_of_drawing
from tessera.requests.edit import read_image, template_id
from tessera.requests.request import Request, read_request
from tests.samples.plans import plan
from tests.samples.requests import MANIFEST, inputs
from tests.samples.schedulers import DEMO, SD15, diffusers_scheduler, network

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def mask_with(*squares: tuple[int, int, int, int]) -> Any:
    mask = np.zeros(IMAGE.shape[:2], np.uint8)
    for x, y, w, h in squares:
        mask[y : y + h, x : x + w] = 255
    return mask


MASK = mask_with((20, 8, 24, 32))


def feathered(mask: Any, width: int = FEATHER) -> Any:
    """The edit's share of each pixel."""
    return share_of_drawing(mask >= EDITED, width, np.float32)


def read(image: Any = IMAGE, mask: Any = MASK, **values: Any) -> Request:
    given = inputs(**{k: v for k, v in values.items() if k not in ("STRENGTH", "TEMPLATE")})
    given |= {"MASK": mask[None]} | ({} if image is None else {"IMAGE": image[None]})
    if "STRENGTH" in values:
        given["STRENGTH"] = np.array([[values["STRENGTH"]]], np.float32)
    if "TEMPLATE" in values:
        given["TEMPLATE"] = np.array([[values["TEMPLATE"].encode()]], object)
    return read_request(given, MANIFEST)


def test_an_edit_has_the_size_of_its_image() -> None:
    wanted = read()
    assert wanted.edit is not None
    assert (wanted.width, wanted.height) == (96, 64)
    assert (wanted.edit.mode, wanted.edit.first_step) == ("auto", 0)
    assert wanted.edit.mask_ratio == 24 * 32 / (64 * 96)
    assert read(WIDTH=96, HEIGHT=64).width == 96
    assert read_request(inputs(), MANIFEST).edit is None


def test_the_same_pixels_are_the_same_template() -> None:
    assert template_id(IMAGE) == template_id(IMAGE.copy())
    other = IMAGE.copy()
    other[0, 0, 0] ^= 1
    assert template_id(IMAGE) != template_id(other)
    assert template_id(IMAGE) != template_id(IMAGE.reshape(96, 64, 3))


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 20, 33, 50])
@pytest.mark.parametrize("strength", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9, 0.999, 1.0])
def test_strength_is_a_share_of_the_steps_as_in_diffusers(steps: int, strength: float) -> None:
    run = min(int(steps * strength), steps)
    if run == 0:
        with pytest.raises(InvalidInput, match=f"and STEPS is {steps}"):
            read(STEPS=steps, STRENGTH=strength)
        return
    edit = read(STEPS=steps, STRENGTH=strength).edit
    assert edit is not None
    assert edit.first_step == steps - run


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"image": None}, "IMAGE is missing, and so is TEMPLATE; accepted: one of"),
    "both": ({"TEMPLATE": "a"}, "IMAGE is given as well as TEMPLATE; accepted: one of the two"),
    "unknown": ({"image": None, "TEMPLATE": "abc"}, "TEMPLATE is 'abc'; accepted: nothing, since"),
    "large": (
        {"image": np.zeros((64, 264, 3), np.uint8)},
        "IMAGE has 264 x 64 pixels; accepted: sides that are multiples of 8 from 64 to 256",
    ),
    "small": ({"image": np.zeros((64, 8, 3), np.uint8)}, "IMAGE has 8 x 64 pixels"),
    "odd": ({"image": np.zeros((100, 128, 3), np.uint8)}, "IMAGE has 128 x 100 pixels"),
    "mask size": (
        {"mask": np.zeros((96, 64), np.uint8)},
        "MASK has 64 x 96 pixels; accepted: the size of the image, 96 x 64 pixels",
    ),
    "mask empty": (
        {"mask": np.full((64, 96), 127, np.uint8)},
        "MASK has no pixel of 128 or more; accepted: 128 to 255 where the image is edited",
    ),
    "width": ({"WIDTH": 64}, "WIDTH is 64; accepted: the image's own, 96, or nothing"),
    "height": ({"HEIGHT": 96}, "HEIGHT is 96; accepted: the image's own, 64, or nothing"),
    "mode": ({"MODE": "fast"}, "MODE is 'fast'; accepted: auto, sparse, dense"),
    "quality": (
        {"EDIT_QUALITY": "good"},
        "EDIT_QUALITY is 'good'; accepted: fast, balanced, best",
    ),
    **{
        f"feather {width}": (
            {"MASK_FEATHER": width},
            f"MASK_FEATHER is {width}; accepted: pixels, from 1 to 128",
        )
        for width in (-1, 0, 129)
    },
    "tone": ({"MASK_TONE": "warm"}, "MASK_TONE is 'warm'; accepted: drawn, matched"),
    "sparse": ({"MODE": "sparse"}, "MODE is 'sparse'; accepted: auto, dense, since the bundle"),
    **{
        f"strength {value}": (
            {"STRENGTH": value},
            f"STRENGTH is {value}; accepted: a number above 0 and up to 1",
        )
        for value in (0.0, -0.5, 1.5, float("nan"), float("inf"))
    },
}


@pytest.mark.parametrize(("values", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_edits_are_named_with_what_is_accepted(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(**values)
    assert str(caught.value).startswith(sentence)


def test_a_template_of_another_server_may_be_too_large_for_this_one() -> None:
    given = {"TEMPLATE": np.array([[b"abc"]], object)}
    picture = np.zeros((128, 512, 3), np.uint8)
    sentence = "TEMPLATE has 512 x 128 pixels; accepted: sides that are multiples of 8 from 64 to"
    with pytest.raises(InvalidInput, match=sentence):
        read_image(given, MANIFEST, lambda identity: picture)
    accepted = read_image(given, MANIFEST, lambda identity: picture[:, :256])
    assert accepted.shape == (128, 256, 3)


def test_a_latent_is_active_if_any_of_its_pixels_is() -> None:
    active = active_latents(mask_with((7, 4, 2, 1)), 4)
    assert active.shape == (16, 24)
    assert np.argwhere(active).tolist() == [[1, 1], [1, 2]]


@given(
    squares=st.lists(
        st.tuples(st.integers(0, 90), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40)),
        min_size=1,
        max_size=3,
    )
)
def test_the_template_stays_outside_the_mask_and_the_edit_shows_inside(
    squares: list[tuple[int, int, int, int]],
) -> None:
    mask = mask_with(*squares)
    share = feathered(mask)
    assert ((share > 0) == (mask >= 128)).all()
    assert share.max() == 1
    result = paste(255 - IMAGE, IMAGE, mask)
    assert (result[mask < 128] == IMAGE[mask < 128]).all()
    full = share == 1
    assert (result[full] == 255 - IMAGE[full]).all()


@given(
    squares=st.lists(
        st.tuples(st.integers(0, 90), st.integers(0, 60), st.integers(1, 96), st.integers(1, 64)),
        min_size=1,
        max_size=2,
    ),
    width=st.integers(1, MAX_FEATHER),
    matched=st.booleans(),
)
def test_no_feather_and_no_tone_changes_a_pixel_outside(
    squares: list[tuple[int, int, int, int]], width: int, matched: bool
) -> None:
    mask = mask_with(*squares)
    drawn = toned(255 - IMAGE, IMAGE, mask) if matched else 255 - IMAGE
    result = paste(drawn, IMAGE, mask, width)
    assert (result[mask < 128] == IMAGE[mask < 128]).all()
    share = feathered(mask, width)
    assert ((share > 0) == (mask >= 128)).all()
    assert (result[share == 1] == drawn[share == 1]).all()
    assert share.max() == 1


def test_a_wider_feather_fades_more_slowly() -> None:
    share = feathered(mask_with((0, 0, 40, 64)), 8)
    assert share[30, 31:41].tolist() == [1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]
    assert (share >= feathered(mask_with((0, 0, 40, 64)), 16)).all()


def test_a_matched_edit_has_the_colours_around_it_at_its_border() -> None:
    mask = mask_with((20, 10, 60, 50))
    ground, drawing = (np.full((64, 96, 3), colour, np.uint8) for colour in ((90, 120, 30), 200))
    found = toned(drawing, ground, mask)
    assert (found[10, 40] == ground[0, 0]).all()
    deep = feathered(mask, TONE) == 1
    assert deep.any()
    assert (found[deep] == drawing[deep]).all()
    assert (found[mask < 128] == drawing[mask < 128]).all()  # it is pasted afterwards
    row = found[35, 20:50, 0].astype(int)
    assert (np.diff(row) >= 0).all()


def test_a_picture_that_is_edited_everywhere_keeps_its_colours() -> None:
    everywhere = np.full((64, 96), 255, np.uint8)
    assert (toned(IMAGE, 255 - IMAGE, everywhere) == IMAGE).all()


def test_an_edit_fades_in_from_the_border_but_not_at_the_pictures_edge() -> None:
    share = feathered(mask_with((0, 0, 40, 64)))
    assert share[30, :].tolist()[34:41] == [1, 1, 1, 0.75, 0.5, 0.25, 0]
    assert share[0, :30].min() == 1
    assert FEATHER == 4


@pytest.mark.parametrize("width", [1, 2, 3])
def test_thin_masks_are_edited_in_their_middle(width: int) -> None:
    share = feathered(mask_with((20, 10, width, 40)))
    assert (share.max(1)[14:46] == 1).all()


pytestmark = pytest.mark.filterwarnings("ignore:Should have t[ab]")  # torchsde's, in diffusers


def level_half_way(scheduler: Any) -> Any:
    """The noise level for which such a sampler scales the latents of its second evaluation."""
    scaled = scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), 0)
    return (1 / scaled**2 - 1).sqrt().float()


def by_diffusers(name: str, config: dict[str, Any], steps: int, strength: float, case: Any) -> Any:
    """The loop of diffusers' StableDiffusionInpaintPipeline for a 4-channel UNet, with the noise of
    each region given.
    """
    clean, mask, inside, outside, generator = case
    spec, scheduler = SCHEDULERS[name], diffusers_scheduler(name, config, seed=3)
    scheduler.set_timesteps(steps)
    first = steps - min(int(steps * strength), steps)
    timesteps = scheduler.timesteps[first * scheduler.order :]
    if name == "pndm" and first:  # its first step is taken twice, wherever it is
        left = torch.from_numpy(scheduler._timesteps[::-1].copy())[first:].long()
        timesteps = torch.cat([left[:2], left[1:]])
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first * scheduler.order)
    noise = mask * inside + (1 - mask) * outside
    if strength == 1:
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(clean, noise, timesteps[:1])
    stochastic = "generator" in inspect.signature(scheduler.step).parameters  # as pipelines ask
    extra = {"generator": generator} if stochastic else {}
    for i, t in enumerate(timesteps):
        if spec.base == "lms":  # of the derivatives that there are
            extra = {"order": min(i + 1, 4)}
        prediction = network(scheduler.scale_model_input(latents, t), t)
        latents = scheduler.step(prediction, t, latents, return_dict=False, **extra)[0]
        proper = clean
        if i < len(timesteps) - 1:
            proper = scheduler.add_noise(clean, outside, timesteps[i + 1 : i + 2])
            if spec.midpoint and not scheduler.state_in_first_order:
                proper = clean + outside * level_half_way(scheduler)
        latents = (1 - mask) * proper + mask * latents
    return latents


@pytest.mark.parametrize("config", [SD15, DEMO], ids=["sd15", "demo"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_edits_as_diffusers_does(name: str, config: dict[str, Any]) -> None:
    """But for what it does not do: to start PNDM and LMS within a schedule, and the template's
    noise of an evaluation that is half-way to the next level.
    """
    cases = [(1, 1.0), (7, 1.0), (7, 0.6), (20, 0.3)]
    for steps, strength in cases[2:3] if SCHEDULERS[name].spread else cases:
        check_edit(name, steps, strength, config)


def check_edit(name: str, steps: int, strength: float, config: dict[str, Any]) -> None:
    clean = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(5))
    active = torch.zeros(8, 12, dtype=torch.uint8)
    active[2:5, 3:9] = 1
    generator = torch.Generator().manual_seed(3)
    inside = torch.randn((1, 4, 8, 12), generator=generator)
    outside = torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(TEMPLATE_SEED))
    case = (clean[None], active[None, None].float(), inside, outside, generator)
    expected = by_diffusers(name, config, steps, strength, case)

    first = steps - int(steps * strength)
    wanted = plan(guidance=1.0, steps=steps, first_step=first, template="t")
    sampler = Sampler(name, config, steps=steps, seed=3, first=first)
    request = start(wanted, {}, sampler, shape=(4, 8, 12), canvas=canvas_of(clean, active))
    for number in range(len(sampler.timesteps)):
        tick([request], lambda s, t, c, join: network(s, t[0]), number)
    assert request.error is None
    assert request.finished
    torch.testing.assert_close(request.latents, expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(request.latents[0][:, active == 0], clean[:, active == 0])


def test_another_seed_changes_active_latents_only() -> None:
    canvas = canvas_of(torch.zeros(4, 8, 12), torch.eye(12)[:8])
    first, second = (
        start(
            plan(seed=seed, template="t"),
            {},
            Sampler("euler", DEMO, steps=4, seed=seed),
            shape=(4, 8, 12),
            canvas=canvas,
        )
        for seed in (1, 2)
    )
    same = first.latents == second.latents
    assert torch.equal(same, ~canvas.active.expand_as(same))

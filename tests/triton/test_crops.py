"""Crops around the mask by a real server, against diffusers' `padding_mask_crop`; room around a
picture; sizes that the UNet does not take.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from bench.server import DEMO_CHECKPOINT
from tessera.contract.limits import FEATHER
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera_client import Client, Region
from tests.samples.images import ramp
from tests.samples.inpainting import PROMPT
from tests.samples.schedulers import diffusers_scheduler

STEPS, GUIDANCE = 8, 4.0


class MeanOfTemplate(diffusers.StableDiffusionInpaintPipeline):  # type: ignore[misc]
    """With the mean of the image's latents, as the server has it; diffusers draws a sample."""

    def _encode_vae_image(self, image: torch.Tensor, generator: Any) -> torch.Tensor:
        mean: torch.Tensor = self.vae.encode(image).latent_dist.mean
        return mean * self.vae.config.scaling_factor


def by_diffusers(image: Any, mask: Any, padding: int, strength: float, scheduler: str) -> Any:
    pipe = MeanOfTemplate.from_pretrained(DEMO_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers_scheduler(scheduler, pipe.scheduler.config)
    result = pipe(
        PROMPT,
        image=Image.fromarray(image),
        mask_image=Image.fromarray(mask),
        padding_mask_crop=padding,
        width=128,
        height=128,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(TEMPLATE_SEED),
    )
    return np.asarray(result.images[0])


@pytest.mark.parametrize(
    ("scheduler", "strength", "width"),
    [("euler", 1.0, 128), ("ddim", 0.75, 512)],
    ids=["euler", "half way, beyond the bundle's size"],
)
def test_a_crop_equals_diffusers_where_the_edit_does_not_fade(
    http_client: Client, scheduler: str, strength: float, width: int
) -> None:
    """The region is 64 x 64 pixels and is drawn at twice its size. Diffusers does not fade."""
    image, mask = ramp(width, 128), np.zeros((128, width), np.uint8)
    mask[32:72, 40:88] = 255
    result = http_client.edit(
        image,
        mask,
        PROMPT,
        seed=TEMPLATE_SEED,
        mode="dense",
        padding_mask_crop=8,
        width=128,
        height=128,
        steps=STEPS,
        guidance=GUIDANCE,
        scheduler=scheduler,
        strength=strength,
    )
    assert result.info.frame == {"box": [32, 20, 96, 84], "scaled": [128, 128]}
    drawn, expected = np.asarray(result.image), by_diffusers(image, mask, 8, strength, scheduler)
    assert (drawn[mask == 0] == image[mask == 0]).all()
    assert (expected[mask == 0] == image[mask == 0]).all()
    fading = 2 * (FEATHER + 3) + 1  # in pixels of the picture it is less: drawn ones are smaller
    deep = np.asarray(Image.fromarray(mask).filter(ImageFilter.MinFilter(fading))) > 0
    assert (expected != image)[deep].any()
    assert np.abs(drawn.astype(np.int16) - expected)[deep].max() <= 2


def test_a_picture_of_more_than_64_mib_is_edited_in_part(http_client: Client) -> None:
    image = np.zeros((4096, 4200, 3), np.uint8)
    image[:, ::2] = 90
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[4000:4060, 30:2000] = 255
    assert image.nbytes + mask.nbytes > 2**26
    wanted: dict[str, Any] = {"padding_mask_crop": 8, "steps": 2, "seed": 3, "mode": "dense"}
    drawn = np.asarray(http_client.edit(image, mask, PROMPT, **wanted).image)
    assert (drawn[mask == 0] == image[mask == 0]).all()
    assert (drawn[mask > 0] != image[mask > 0]).any()


def test_room_is_drawn_around_a_picture_of_an_odd_size(client: Client) -> None:
    image = ramp(101, 75)
    wanted: dict[str, Any] = {"seed": 3, "steps": 4, "extend": (0, 8, 30, 0)}
    for mode in ("dense", "sparse"):
        result = client.edit(image, None, PROMPT, mode=mode, **wanted)
        drawn = np.asarray(result.image)
        assert drawn.shape == (83, 131, 3)
        assert (drawn[8:, :101] == image).all()
        assert drawn[:, 101:].std() > 0
        assert (result.info.mode == "dense") == (mode == "dense")


def test_pixels_outside_the_mask_stay_whatever_is_asked_for(http_client: Client) -> None:
    """Sizes, masks and modes at random; `tests/unit/triton/test_edit_frames.py` has many more."""
    rng = np.random.default_rng(11)
    for number in range(8):
        width, height = (int(side) for side in rng.integers(50, 200, 2))
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        mask = np.zeros((height, width), np.uint8)
        x, y = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
        inside = mask[y : y + int(rng.integers(4, 60)), x : x + int(rng.integers(4, 60))]
        inside[:] = rng.integers(128, 256, inside.shape)
        wanted: dict[str, Any] = {
            "steps": 2,
            "seed": number,
            "strength": float(rng.choice([0.5, 1])),
        }
        wanted |= {"mode": ("sparse", "dense")[number % 2]}
        wanted |= {"mask_kind": "soft"} if number % 3 == 0 else {"mask_fill": "blur"}
        wanted |= {"padding_mask_crop": int(rng.integers(0, 30))} if number % 4 < 2 else {}
        if number % 5 < 2:
            wanted |= {"mask_feather": int(rng.integers(1, 129)), "mask_tone": "matched"}
        if number > 4:
            wanted["regions"] = [Region(np.roll(mask, 9, 1), "a blue star")]
            edited = np.maximum(mask, np.roll(mask, 9, 1)) > 0
        else:
            edited = mask > 0
        drawn = np.asarray(http_client.edit(image, mask, PROMPT, **wanted).image)
        assert drawn.shape == image.shape
        assert (drawn[~edited] == image[~edited]).all(), wanted
        assert (drawn != image).any(), wanted

"""Soft masks by a real server: against the published code of differential diffusion, written out
over diffusers' components.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import interpolate, max_pool2d

from bench.server import DEMO_CHECKPOINT
from tessera.codec.masks import paste
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera_build.similarity import ssim
from tessera_client import Client
from tests.samples.images import island, largest, ramp
from tests.samples.inpainting import PROMPT
from tests.samples.schedulers import diffusers_scheduler

STEPS, GUIDANCE = 10, 4.0


def slope(*, least: int = 20) -> Any:
    """Strengths that rise from left to right, the same within each latent."""
    row = np.linspace(least, 255, 32).astype(np.uint8).repeat(4)
    return np.broadcast_to(row, (128, 128)).copy()


@pytest.fixture(scope="module")
def pipe() -> Any:
    return diffusers.StableDiffusionPipeline.from_pretrained(DEMO_CHECKPOINT)


@torch.inference_mode()
def published(
    pipe: Any, image: Any, mask: Any, *, scheduler: str, strength: float, seed: int
) -> Any:
    """The loop of the authors' pipeline. Latents with no pixel to edit are the image's in the end,
    and so are pixels of 0, which the authors leave to their caller.
    """
    steps, fresh = (diffusers_scheduler(scheduler, pipe.scheduler.config) for _ in range(2))
    for each in (steps, fresh):
        each.set_timesteps(STEPS)
    timesteps = steps.timesteps[STEPS - int(STEPS * strength) :]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255 * 2 - 1
    clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=torch.Generator("cpu").manual_seed(seed))
    originals = [fresh.add_noise(clean, noise, t[None]) for t in timesteps]
    keep = 1 - torch.from_numpy(mask)[None, None] / 255
    keep = interpolate(keep, clean.shape[2:], mode="bilinear", align_corners=False)
    thresholds = torch.arange(len(timesteps)) / len(timesteps)
    positive, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True, "")
    text = torch.cat([negative, positive])
    latents = originals[0]
    for i, t in enumerate(timesteps):
        if i:
            kept = (keep > thresholds[i]).float()
            latents = originals[i] * kept + latents * (1 - kept)
        both = steps.scale_model_input(torch.cat([latents] * 2), t)
        without, wanted = pipe.unet(both, t, encoder_hidden_states=text).sample.chunk(2)
        guided = without + GUIDANCE * (wanted - without)
        latents = steps.step(guided, t, latents).prev_sample
    edited = max_pool2d(torch.from_numpy(mask)[None, None].float(), 4)
    latents = torch.where(edited == 0, clean, latents)
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    shown = (decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    drawn = (255 * shown).round().astype(np.uint8)
    return paste(drawn, image, np.where(mask > 0, np.uint8(255), np.uint8(0)))


CASES: dict[str, dict[str, Any]] = {
    "euler": {"scheduler": "euler", "strength": 0.8, "seed": 3},
    "ddim": {"scheduler": "ddim", "strength": 0.6, "seed": 4},
    "the template's seed": {"scheduler": "euler", "strength": 0.9, "seed": TEMPLATE_SEED},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_a_soft_mask_equals_the_published_code(
    http_client: Client, pipe: Any, options: dict[str, Any]
) -> None:
    mask = slope()
    if options["seed"] == TEMPLATE_SEED:  # the only one whose noise is the same everywhere
        mask[island() < 128] = 0
    wanted = {"steps": STEPS, "guidance": GUIDANCE, "mode": "dense", **options}
    result = http_client.edit(ramp(), mask, PROMPT, mask_kind="soft", **wanted)
    expected = published(pipe, ramp(), mask, **options)
    assert (expected != ramp()).any()
    assert largest(result, expected) <= 2
    hard = http_client.edit(ramp(), mask > 0, PROMPT, **wanted)
    assert largest(hard, expected) > 20, "the strengths matter"


@pytest.mark.parametrize("radius", [5, 12])
def test_a_blurred_mask_equals_the_published_code(
    http_client: Client, pipe: Any, radius: int
) -> None:
    """Its values differ within each latent; what counts is the mask as that code resizes it."""
    square = np.zeros((128, 128), np.uint8)
    square[35:94, 30:101] = 255
    mask = np.array(Image.fromarray(square).filter(ImageFilter.GaussianBlur(radius)))
    options: dict[str, Any] = CASES["the template's seed"]
    wanted = {"steps": STEPS, "guidance": GUIDANCE, "mode": "dense", **options}
    result = http_client.edit(ramp(), mask, PROMPT, mask_kind="soft", **wanted)
    expected = published(pipe, ramp(), mask, **options)
    assert (expected != ramp()).any()
    assert largest(result, expected) <= 2
    blocks = mask.reshape(32, 4, 32, 4).max((1, 3)).repeat(4, 0).repeat(4, 1)
    coarser = published(pipe, ramp(), blocks, **options)
    assert largest(result, coarser) > 20, "the values within a latent matter"


@pytest.mark.parametrize("part", [False, True], ids=["everything", "a part"])
def test_a_sparse_edit_with_a_soft_mask_is_the_dense_one(http_client: Client, part: bool) -> None:
    """Where every token is computed. Of a part it is as near as `balanced` promises."""
    image, mask = ramp(), slope()
    if part:
        mask[island() < 128] = 0
    wanted: dict[str, Any] = {"steps": STEPS, "seed": 3, "strength": 0.9, "scheduler": "euler"}
    http_client.register_template(image, steps=STEPS, scheduler="euler", prompt=PROMPT)
    sparse, dense = (
        http_client.edit(image, mask, PROMPT, mode=mode, mask_kind="soft", **wanted)
        for mode in ("sparse", "dense")
    )
    hard = http_client.edit(image, mask > 0, PROMPT, mode="dense", **wanted)
    assert (sparse.info.mode, dense.info.mode) == ("sparse", "dense")
    assert (sparse.info.edit_quality, sparse.info.recording) == ("balanced", "own")
    outside = mask == 0
    for result in (sparse, dense):
        assert (np.asarray(result.image)[outside] == image[outside]).all()
    assert sparse.info.mask_ratio == pytest.approx((mask > 0).mean())
    if not part:
        assert largest(sparse, np.asarray(dense.image)) <= 2
    inside = np.where(outside, np.uint8(0), np.uint8(255))
    near, far = (ssim(np.asarray(r.image), np.asarray(dense.image), inside) for r in (sparse, hard))
    assert near > 0.95 > far, "the strengths matter"

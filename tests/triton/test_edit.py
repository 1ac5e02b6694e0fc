"""Edits by a real server: against diffusers' inpainting pipelines, bit-exact outside the mask, in
company, cancelled, and refused.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffusers
import numpy as np
import pytest

from bench.server import DEMO_CHECKPOINT
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.errors import Cancelled, InvalidInput
from tessera_client import Client
from tests.samples.images import island, largest, ramp
from tests.samples.inpainting import PROMPT, by_diffusers
from tests.samples.jobs import ENDLESS, in_company, unique, wait_for_step

BEFORE = "a large red circle in the center on a yellow background"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(DEMO_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    return pipe


CASES: dict[str, dict[str, Any]] = {
    "euler": {"scheduler": "euler"},
    "half strength": {"scheduler": "euler", "strength": 0.5},
    "ancestral": {"scheduler": "euler_ancestral", "strength": 0.8},
    "multistep": {"scheduler": "dpmpp_2m_karras", "strength": 0.7},
    "ddim, no guidance": {"scheduler": "ddim", "guidance": 1.0},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_an_edit_with_the_templates_seed_equals_diffusers_inpainting(
    http_client: Client, pipeline: Any, options: dict[str, Any]
) -> None:
    image, mask = ramp(), island()
    wanted = {"steps": 10, "guidance": 4.0, **options}
    result = http_client.edit(image, mask, PROMPT, seed=TEMPLATE_SEED, mode="dense", **wanted)
    expected = by_diffusers(
        pipeline,
        image,
        mask,
        scheduler=wanted["scheduler"],
        strength=wanted.get("strength", 1.0),
        num_inference_steps=wanted["steps"],
        guidance_scale=wanted["guidance"],
    )
    assert (expected != image).any()
    assert largest(result, expected) <= 2


def test_pixels_outside_the_mask_are_the_templates_bit_for_bit(client: Client) -> None:
    image = np.asarray(client.generate(BEFORE, seed=3, steps=4, width=136, height=72).image)
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[13:50, 21:77] = 255
    results = [client.edit(image, mask, PROMPT, seed=s, steps=4, mode="dense") for s in (1, 2)]
    pictures = [np.asarray(r.image) for r in results]
    for picture in pictures:
        assert (picture[mask < 128] == image[mask < 128]).all()
        assert (picture[mask >= 128] != image[mask >= 128]).mean() > 0.5
    assert (pictures[0] != pictures[1]).any()
    info = results[0].info
    assert (info.mode, info.width, info.height, info.ticks) == ("dense", 136, 72, 4)
    assert info.mask_ratio == pytest.approx((mask >= 128).mean())
    assert info.template
    parts = info.encode_ms + info.queue_ms + info.denoise_ms + info.decode_ms
    assert 0 < parts <= info.total_ms


def test_edits_and_generations_share_ticks_and_do_not_change_each_other(
    http_client: Client,
) -> None:
    image, masks = ramp(), [island(), np.full((128, 128), 255, np.uint8)]
    jobs: list[Callable[[], Any]] = [
        *(
            lambda m=mask, s=strength: http_client.edit(
                image, m, PROMPT, seed=5, steps=24, strength=s, mode="dense"
            )
            for mask in masks
            for strength in (0.6, 1.0)
        ),
        lambda: http_client.generate(PROMPT, seed=6, steps=24),
        lambda: http_client.generate(PROMPT, seed=7, steps=24, guidance=1.0),
    ]
    alone = [np.asarray(job().image, np.int16) for job in jobs]
    with in_company(http_client, 2), ThreadPoolExecutor(len(jobs)) as pool:
        together = [future.result() for future in [pool.submit(job) for job in jobs]]
    for result, expected in zip(together, alone, strict=True):
        assert largest(result, expected) <= 2
    assert min(result.info.mean_batch for result in together) > 2


def test_a_cancelled_edit_ends(http_client: Client) -> None:
    job = unique("edit")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            http_client.edit,
            *(ramp(), island(), PROMPT),
            job_id=job,
            **ENDLESS,
            strength=0.8,
            mode="dense",  # else 1000 steps are recorded when the server is idle, and others wait
        )
        status = wait_for_step(http_client, job, 2)
        assert status.total == 800
        http_client.cancel(job)
        with pytest.raises(Cancelled, match=rf"job {job} was cancelled after \d+ steps"):
            future.result()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "empty mask": (
        {"mask": np.zeros((128, 128), np.uint8)},
        "MASK has no pixel of 128 or more; accepted: 128 to 255 where the image is edited",
    ),
    "unknown template": ({"image": None, "template": "abc"}, "TEMPLATE is 'abc'; accepted: "),
    "no image": ({"image": None}, "IMAGE is missing, and so is TEMPLATE; accepted: one"),
    "too large": (
        {"image": ramp(512, 128), "mask": np.full((128, 512), 255, np.uint8)},
        "IMAGE has 512 x 128 pixels; accepted: sides of 1 to 256 pixels, or PADDING_MASK_CROP",
    ),
    "strength 0": ({"strength": 0.0}, "STRENGTH is 0.0; accepted: a number above 0 and up to 1"),
    "strength 1.5": ({"strength": 1.5}, "STRENGTH is 1.5; accepted: a number above 0"),
    "strength NaN": ({"strength": float("nan")}, "STRENGTH is nan; accepted: a number above 0"),
    "mode": ({"mode": "fast"}, "MODE is 'fast'; accepted: auto, sparse, dense"),
    "quality": ({"quality": "good"}, "EDIT_QUALITY is 'good'; accepted: fast, balanced, best"),
}


@pytest.mark.parametrize(("values", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_edits_are_answered_with_field_value_and_what_is_accepted(
    client: Client, values: dict[str, Any], sentence: str
) -> None:
    wanted = {"image": ramp(), "mask": island(), **values}
    with pytest.raises(InvalidInput) as caught:
        client.edit(wanted.pop("image"), wanted.pop("mask"), PROMPT, **wanted)
    assert str(caught.value).startswith(sentence)

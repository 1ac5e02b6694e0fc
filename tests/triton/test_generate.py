"""Pictures from the server against diffusers' pipeline on the same checkpoint."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from bench.server import DEMO_CHECKPOINT
from tessera.contract import MAX_SEED, SCHEDULERS
from tessera_build.demo.scenes import describe, held_out_scenes
from tessera_client import Client, Info, Result
from tests.samples.jobs import LONG_TICKS, in_company
from tests.samples.schedulers import diffusers_scheduler
from tests.samples.waiting import again_until

PROMPTS = [describe(scene) for scene in held_out_scenes(10, seed=5)]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(DEMO_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_diffusers(
    pipe: StableDiffusionPipeline,
    prompt: str,
    *,
    seed: int,
    scheduler: str,
    steps: int = 20,
    guidance: float = 4.0,
    width: int = 128,
    height: int = 128,
    negative_prompt: str = "",
) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    base = StableDiffusionPipeline.load_config(DEMO_CHECKPOINT)
    assert base["scheduler"][1] == "EulerDiscreteScheduler"
    config = diffusers.EulerDiscreteScheduler.load_config(DEMO_CHECKPOINT, subfolder="scheduler")
    pipe.scheduler = diffusers_scheduler(scheduler, config, seed=seed)
    result = pipe(
        prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=steps,
        guidance_scale=guidance,
        width=width,
        height=height,
        generator=torch.Generator("cpu").manual_seed(seed),
    )
    return np.asarray(result.images[0], np.int16)


def with_generator(
    pipe: StableDiffusionPipeline, generator: torch.Generator, eta: float
) -> dict[str, object]:
    """What a pipeline gives to a scheduler's step, with eta as the scheduler has it."""
    return {"generator": generator}


def difference(
    result: Result, expected: np.ndarray[tuple[int, ...], np.dtype[np.int16]]
) -> tuple[int, float]:
    """(largest, mean) absolute difference in 1/255."""
    delta = np.abs(np.asarray(result.image, np.int16) - expected)
    return int(delta.max()), float(delta.mean())


@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral", "dpmpp_2m_karras"])
@pytest.mark.parametrize("index", range(10))
def test_equals_diffusers(
    http_client: Client, pipeline: StableDiffusionPipeline, index: int, scheduler: str
) -> None:
    """One prompt takes as many steps as a request that says nothing. For the others six do: what
    differs between prompts is text and noise, and that a sampler walks as diffusers does for any
    number of steps is shown bit for bit by `tests/unit/denoise/test_sampler.py`.
    """
    steps = 20 if index == 0 else 6
    expected = by_diffusers(pipeline, PROMPTS[index], seed=index, scheduler=scheduler, steps=steps)
    asked = None if index == 0 else steps
    result = http_client.generate(PROMPTS[index], seed=index, scheduler=scheduler, steps=asked)
    assert result.info.steps == steps
    largest, mean = difference(result, expected)
    assert largest <= 2
    assert mean <= 0.1


OTHERS = """ddim dpmpp_2m unipc lcm heun kdpm2 dpmpp_sde lms pndm tcd heun_karras dpmpp_2m_sde_beta
dpmpp_sde_exponential euler_trailing"""


@pytest.mark.filterwarnings("ignore:Should have t[ab]")  # torchsde, of the last digit
@pytest.mark.parametrize("scheduler", OTHERS.split())
def test_the_other_schedulers_equal_diffusers(
    http_client: Client,
    pipeline: StableDiffusionPipeline,
    scheduler: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if scheduler == "tcd":  # diffusers' pipelines turn its noise off by default
        monkeypatch.setattr(StableDiffusionPipeline, "prepare_extra_step_kwargs", with_generator)
    expected = by_diffusers(pipeline, PROMPTS[0], seed=3, scheduler=scheduler, steps=9)
    result = http_client.generate(PROMPTS[0], seed=3, scheduler=scheduler, steps=9)
    assert result.info.ticks == SCHEDULERS[scheduler].count(9)
    largest, mean = difference(result, expected)
    assert largest <= 2
    assert mean <= 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": 1.0},
        {"guidance": 0.0},
        {"guidance": 9.5, "negative_prompt": "a red circle"},
        {"width": 192, "height": 96},
        {"width": 136, "height": 72},
        {"steps": 1},
    ],
    ids=["no guidance", "guidance 0", "negative prompt", "wide", "odd sizes", "one step"],
)
def test_options_mean_what_they_mean_in_diffusers(
    client: Client, pipeline: StableDiffusionPipeline, options: dict[str, object]
) -> None:
    wanted = {"seed": 11, "scheduler": "euler", "steps": 8, **options}
    expected = by_diffusers(pipeline, PROMPTS[1], **wanted)  # type: ignore[arg-type]
    result = client.generate(PROMPTS[1], **wanted)  # type: ignore[arg-type]
    largest, mean = difference(result, expected)
    assert largest <= 2
    assert mean <= 0.1


def test_pictures_say_their_checksum(client: Client) -> None:
    """Otherwise clients compare nothing, and nothing fails."""
    image = np.zeros((100, 128, 3), np.uint8)  # fitted by the server
    mask = np.zeros((100, 128), np.uint8)
    mask[20:60, 20:60] = 255
    for drawn in (
        client.generate("a red circle", seed=1, steps=2),
        client.edit(image, mask, "a red circle", seed=1, steps=2),
        client.edit(image, mask, "a red circle", seed=1, steps=2, extend=(0, 0, 0, 28)),
    ):
        assert drawn.info.image_crc32 is not None


def test_info_says_what_was_done(client: Client) -> None:
    result = client.generate("a red circle", seed=MAX_SEED, steps=3, width=64, height=72)
    info = result.info
    assert result.image.size == (64, 72)
    assert (info.seed, info.steps, info.width, info.height) == (MAX_SEED, 3, 64, 72)
    assert (info.scheduler, info.mode, info.mask_ratio) == ("euler", "dense", None)
    assert (info.loras, info.controls) == ([], [])
    assert info.ticks == 3
    assert info.mean_batch == 1.0
    parts = info.encode_ms + info.queue_ms + info.denoise_ms + info.decode_ms
    assert 0 < parts <= info.total_ms
    assert info.refit_ms == info.cache_load_ms == 0.0


def test_a_seed_left_out_is_drawn_and_told(http_client: Client) -> None:
    first = http_client.generate("a red circle", steps=2)
    second = http_client.generate("a red circle", steps=2)
    assert first.info.seed != second.info.seed
    again = http_client.generate("a red circle", steps=2, seed=first.info.seed)
    assert again.image.tobytes() == first.image.tobytes()


def test_seed_zero_is_a_seed(http_client: Client) -> None:
    pictures = {
        http_client.generate("a red circle", steps=2, seed=0).image.tobytes() for _ in range(2)
    }
    assert len(pictures) == 1


def test_dropped_tokens_are_reported(http_client: Client) -> None:
    fits = http_client.generate("a red circle", steps=1)
    assert fits.info.prompt_tokens_dropped == 0
    long = http_client.generate("red " * 100, steps=1)
    assert long.info.prompt_tokens_dropped == 0
    longest = http_client.generate("red " * 310, steps=1)
    assert longest.info.prompt_tokens_dropped == 310 - 4 * 75
    plain = http_client.generate("red " * 100, steps=1, prompt_syntax="plain")
    assert plain.info.prompt_tokens_dropped == 102 - 77


BESIDE = ("euler", "heun", "dpmpp_sde_karras", "pndm", "lms_beta", "tcd", "kdpm2_exponential")
"""Samplers of the requests that run beside another one."""


@pytest.mark.parametrize("scheduler", ["euler_ancestral", "dpmpp_sde", "tcd"])
def test_a_request_in_company_equals_the_request_alone(http_client: Client, scheduler: str) -> None:
    wanted = {"seed": 42, "steps": 20, "scheduler": scheduler}
    alone = http_client.generate(PROMPTS[2], **wanted)  # type: ignore[arg-type]
    rng = random.Random(0)
    started = threading.Event()

    def company(index: int) -> Result:
        time.sleep(rng.random() * 0.8)
        started.set()
        return http_client.generate(
            PROMPTS[3 + index],
            seed=index,
            steps=10 + 3 * index,
            guidance=1.0 if index == 2 else 3.0 + index,
            width=192 if index == 4 else 128,
            scheduler=BESIDE[index],
        )

    with in_company(http_client), ThreadPoolExecutor(8) as pool:
        others = [pool.submit(company, i) for i in range(7)]
        started.wait()
        together = pool.submit(lambda: http_client.generate(PROMPTS[2], **wanted)).result()  # type: ignore[arg-type]
        for other in others:
            other.result()
    assert together.info.mean_batch > 1.5
    largest, _ = difference(together, np.asarray(alone.image, np.int16))
    assert largest <= 1
    again = http_client.generate(PROMPTS[2], **wanted)  # type: ignore[arg-type]
    assert again.image.tobytes() == alone.image.tobytes()


def test_a_newcomer_starts_at_the_next_tick_and_overtakes(http_client: Client) -> None:
    """Which tick is the next one is read a moment before the request is on its way; so a machine
    that stops for a tick's time at that place may say one too early, and another one is drawn. It
    overtakes: its company is still there when it has ended.
    """

    def drawn() -> Info:
        info = http_client.generate(PROMPTS[5], seed=5, steps=5).info
        assert info.last_tick - info.first_tick == 4
        return info

    def at_once(info: Info) -> bool:
        """In the tick after the one under way, with all four of its size."""
        return info.first_tick - info.queued_tick <= 2 and info.mean_batch == 5.0

    with in_company(http_client, 4), in_company(http_client, 2, **LONG_TICKS):
        again_until(drawn, at_once)

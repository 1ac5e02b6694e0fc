"""Programs that know one server only use a fleet unchanged."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from bench.browser import browser, chromium
from bench.perf_analyzer import measure_load
from tessera_client import Client, Region
from tests.samples.fleets import RunningFleet
from tests.samples.playground import Playground

PROMPT = "a large red circle in the center"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_perf_analyzer(fleet: RunningFleet, protocol: str) -> None:
    inputs = {"PROMPT": PROMPT, "STEPS": 3, "SEED": 1}
    (load,) = measure_load(
        getattr(fleet, protocol), inputs, concurrency="2:2:1", requests=8, stability=1000
    )
    assert load.throughput > 0
    assert 0 < load.p50_ms <= load.p99_ms


def test_openai_draws_what_one_server_draws(fleet: RunningFleet, http_client: Client) -> None:
    settings: Any = {"steps": 4, "seed": 7}
    alone = http_client.generate(PROMPT, **settings)
    with OpenAI(base_url=f"{fleet.http}/v1", api_key="none", max_retries=0) as api:
        answer = api.images.generate(
            prompt=PROMPT, response_format="b64_json", extra_body={"tessera": settings}
        )
    assert answer.data
    picture = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(alone.image))


def test_edits_of_several_regions_are_those_of_one_server(
    through: Client, http_client: Client
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    regions = [Region((40, 16, 20, 24), "a green square"), Region((16, 40, 24, 20), "a star")]
    options: Any = {"regions": regions, "steps": 3, "seed": 7, "mode": "dense"}
    wanted, got = (
        client.edit(image, (16, 16, 24, 24), PROMPT, **options) for client in (http_client, through)
    )
    assert (wanted.info.regions, got.info.regions) == (2, 2)
    np.testing.assert_array_equal(np.asarray(got.image), np.asarray(wanted.image))


def test_the_page_draws(fleet: RunningFleet) -> None:
    path = chromium()
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    with browser(path) as started:
        playground = Playground(started.new_context(accept_downloads=True).new_page(), fleet.http)
        playground.open()
        playground.draw(seed=7, steps=10)
        playground.wait_for_pictures(1)
        with playground.download() as saved:
            assert "Seed: 7" in saved.info["parameters"]
        assert not playground.errors

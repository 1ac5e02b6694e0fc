"""A server whose UNet is on two devices (two halves of this machine's cores): the pictures of one
on a single device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.server import Server
from tessera_client import Client, Control, Lora, Result
from tests.samples.images import island, noise_blocks, ramp
from tests.samples.jobs import in_company
from tests.samples.served_loras import apart
from tests.samples.servers import ended_whole

PROMPT = "a large blue star at the top on a green background"
SHORT: dict[str, Any] = {"steps": 5, "guidance": 4.0}
Draw = Callable[[Client], Result]


@pytest.fixture(scope="module")
def spread(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of the server on two devices."""
    places = ("--place=unet=cpu,cpu", "--place=vae=cpu", "--place=text_encoders=cpu")
    flags = (*places, "--lora-path=refit")
    server: Server
    with (
        ended_whole(bundle, tmp_path_factory.mktemp("devices") / "log", *flags) as server,
        Client(server.http, timeout=300) as client,
    ):
        yield client


def generated(**options: Any) -> Draw:
    return lambda client: client.generate(PROMPT, **SHORT, **options)


def edited(**options: Any) -> Draw:
    return lambda client: client.edit(ramp(), island(), PROMPT, **SHORT, **options)


EDGES = Control("edges", image=noise_blocks(11))
CASES: dict[str, Draw] = {
    "guided": generated(seed=1),
    "alone in its tick": generated(seed=2, width=96, height=64),
    "LoRA": generated(seed=3, loras=[Lora("outline")]),
    "ControlNet": generated(seed=4, controls=[EDGES]),
    "both": generated(seed=5, loras=[Lora("night", 0.7)], controls=[EDGES]),
    "dense edit": edited(seed=6, mode="dense"),
    "sparse edit": edited(seed=7, mode="sparse"),
    "sparse edit with a ControlNet": edited(seed=8, mode="sparse", controls=[EDGES]),
}


def test_pictures_are_those_of_one_device_alone_and_in_company(
    http_client: Client, spread: Client
) -> None:
    alone = {name: draw(http_client) for name, draw in CASES.items()}
    solos = {name: draw(spread) for name, draw in CASES.items()}  # loads what the company shares
    with in_company(spread), ThreadPoolExecutor(len(CASES)) as pool:
        together = dict(
            zip(CASES, pool.map(lambda draw: draw(spread), CASES.values()), strict=True)
        )
    for name, expected in alone.items():
        solo = solos[name]
        assert apart(expected.image, solo.image) <= 1, name
        assert apart(expected.image, together[name].image) <= 1, name
        assert expected.info.sparse_ticks == solo.info.sparse_ticks, name
    assert together["guided"].info.mean_batch > 1
    assert together["dense edit"].info.mean_batch > 1
    assert apart(alone["guided"].image, alone["ControlNet"].image) > 20


def test_a_refit_leaves_nothing_behind_on_either_device(spread: Client) -> None:
    plain, adapted = CASES["guided"], CASES["LoRA"]
    first, other, again = plain(spread), adapted(spread), plain(spread)
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert (other.info.lora_path, other.info.switches) == ("refit", 1)

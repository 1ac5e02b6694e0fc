"""Requests of a higher priority overtake those that wait, and those that run, however many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from bench.server import Server
from tessera.errors import UnknownJob
from tessera_client import Client
from tests.samples.jobs import ENDLESS, end_all, unique, wait_for_step, waiting
from tests.samples.waiting import comes

CROWD = 30
LONG = {**ENDLESS, "priority": 3}
IMAGE = np.full((64, 64, 3), 99, np.uint8)

Draw = Callable[..., Any]


def generation(client: Client, **options: Any) -> Any:
    return client.generate("a", width=64, height=64, **options)


def edit(client: Client, **options: Any) -> Any:
    return client.edit(IMAGE, (0, 0, 32, 32), "a", mode="dense", **options)


@contextmanager
def crowd(server: Server, draw: Draw, jobs: int) -> Iterator[tuple[list[str], ThreadPoolExecutor]]:
    """So many requests of the last priority that end only when the block does."""
    names = [unique("crowd") for _ in range(jobs)]
    with ThreadPoolExecutor(jobs + 2) as pool, Client(server.http, timeout=500) as client:
        drawn = [pool.submit(draw, client, job_id=name, **LONG) for name in names]
        try:
            yield names, pool
            assert sum(each.done() for each in drawn) <= 1
        finally:
            end_all(client, names, drawn)


def test_one_generation_overtakes_thirty(server: Server, http_client: Client) -> None:
    with crowd(server, generation, CROWD) as (names, pool):
        comes(lambda: waiting(server, "render") == CROWD - 12)
        first = unique("first")
        overtaking = pool.submit(generation, http_client, job_id=first, steps=3, priority=1)
        comes(lambda: waiting(server, "render") == CROWD - 11)
        assert http_client.status(first).place == 1
        comes(lambda: len(_denoised(http_client, names)) >= 8)  # as many as there are slots
        http_client.cancel(
            _denoised(http_client, names)[0]
        )  # there is a process of render now, and all slots are taken
        assert overtaking.result(300).info.steps == 3
        still = [http_client.status(name) for name in names]
        assert sum(status.phase == "queued" for status in still) >= CROWD - 12


def test_one_edit_overtakes_thirty(server: Server, http_client: Client) -> None:
    with crowd(server, edit, CROWD) as (names, pool):
        comes(lambda: waiting(server, "edit") == CROWD - 4)
        overtaking = pool.submit(edit, http_client, steps=3, priority=1)
        comes(lambda: waiting(server, "edit") == CROWD - 3)
        comes(lambda: len(_known(http_client, names)) == 4)  # one after the other, by encode
        http_client.cancel(_known(http_client, names)[0])
        assert overtaking.result(300).info.steps == 3


def test_an_edit_overtakes_generations_that_run(server: Server, http_client: Client) -> None:
    """All slots are taken; between two ticks it gets one."""
    with crowd(server, generation, 8) as (names, _):
        for name in names:
            wait_for_step(http_client, name, 1)
        assert edit(http_client, steps=3, priority=1).info.steps == 3


def _is_known(client: Client, name: str) -> bool:
    try:
        client.status(name)
    except UnknownJob:
        return False
    return True


def _denoised(client: Client, names: list[str]) -> list[str]:
    return [name for name in names if client.status(name).phase == "denoising"]


def _known(client: Client, names: list[str]) -> list[str]:
    return [name for name in names if _is_known(client, name)]


@pytest.mark.parametrize("draw", [generation, edit])
def test_a_priority_has_to_be_one(http_client: Client, draw: Draw) -> None:
    with pytest.raises(ValueError, match="priority is 4; accepted: an integer from 1 to 3"):
        draw(http_client, priority=4)

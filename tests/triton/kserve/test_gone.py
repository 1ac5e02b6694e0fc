"""A caller that closes its connection in the middle: its job ends within two ticks."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bench.server import Server
from tessera_client import Client, Info
from tessera_gateway.cancelling import COMES_WITHIN_S
from tests.samples.gateways import RunningGateway
from tests.samples.jobs import (
    ENDLESS,
    LONG_TICKS,
    end_all,
    in_company,
    unique,
    wait_for_step,
    waiting,
)
from tests.samples.waiting import again_until, comes

IMAGE = np.full((64, 64, 3), 99, np.uint8)


def values(job: str | None) -> dict[str, Any]:
    named = {} if job is None else {"JOB_ID": job}
    return {"PROMPT": "a red circle", "STEPS": 1000, "SCHEDULER": "heun", "SEED": 1, **named}


def tensors(job: str | None) -> dict[str, Any]:
    kinds = {int: "INT32", str: "BYTES"}
    inputs = [
        {
            "name": name,
            "datatype": "INT64" if name == "SEED" else kinds[type(value)],
            "shape": [1, 1],
            "data": [value],
        }
        for name, value in values(job).items()
    ]
    return {"inputs": inputs}


CALLS: dict[str, tuple[str, Callable[[str | None], dict[str, Any]]]] = {
    "infer": ("/v2/models/generate/infer", tensors),
    "generate": ("/v2/models/generate/generate", values),
}


def begin(gateway: RunningGateway, path: str, content: dict[str, Any]) -> socket.socket:
    """A connection on which a picture has been asked for."""
    body = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", gateway.port))
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize(("path", "content"), CALLS.values(), ids=CALLS.keys())
def test_the_job_is_cancelled(
    server: Server,
    kserve: RunningGateway,
    path: str,
    content: Callable[[str | None], dict[str, Any]],
) -> None:
    """Beside pictures that make its ticks long: two of them are time enough for the gateway."""
    job = unique("left")
    with Client(server.http) as client, in_company(client, 4, **LONG_TICKS):
        connection = begin(kserve, path, content(job))
        before = wait_for_step(client, job, 2).step
        connection.close()
        ended = again_until(lambda: client.status(job), lambda status: status.ended)
    assert ended.phase == "cancelled"
    assert ended.step - before <= 4  # two ticks, and those between the question and the close


def edit_tensors(job: str) -> dict[str, Any]:
    picture = {"datatype": "UINT8", "shape": [1, 64, 64, 3], "data": [99] * (64 * 64 * 3)}
    mask = {"datatype": "UINT8", "shape": [1, 64, 64], "data": [255] * (64 * 64)}
    mode = {"name": "MODE", "datatype": "BYTES", "shape": [1, 1], "data": ["dense"]}
    more = [{"name": "IMAGE", **picture}, {"name": "MASK", **mask}, mode]
    return {"inputs": [*tensors(job)["inputs"], *more]}


def test_an_edit_that_waits_in_tritons_queue_is_cancelled(
    server: Server, kserve: RunningGateway
) -> None:
    """The board knows it only when one of the four processes of `edit` takes it."""
    names = [unique("edit") for _ in range(5)]
    job = unique("left")
    with ThreadPoolExecutor(5) as pool, Client(server.http, timeout=3600) as client:

        def draw(name: str) -> Any:
            return client.edit(IMAGE, (0, 0, 32, 32), "a", job_id=name, mode="dense", **ENDLESS)

        drawn = [pool.submit(draw, name) for name in names]
        try:
            comes(lambda: waiting(server, "edit") == 1)
            connection = begin(kserve, "/v2/models/edit/infer", edit_tensors(job))
            comes(lambda: waiting(server, "edit") == 2)
            connection.close()
            time.sleep(1.5 * COMES_WITHIN_S)  # a job that is on its way has come long before
        finally:
            end_all(client, names, drawn)
        wait_for_step(client, job, 0)
        ended = again_until(lambda: client.status(job), lambda status: status.ended)
    assert ended.phase == "cancelled"


def test_a_job_without_an_id_is_cancelled_too(server: Server, kserve: RunningGateway) -> None:
    """It has all adapters that its company has, and shares its ticks."""
    with Client(server.http) as client, in_company(client, **LONG_TICKS):

        def small() -> Info:
            return client.generate("a circle", steps=3, seed=1).info

        assert small().mean_batch == 1, "pictures of other sizes are other batches"
        connection = begin(kserve, CALLS["infer"][0], tensors(None))
        shared = again_until(small, lambda info: info.mean_batch > 1.5)
        connection.close()
        alone = again_until(small, lambda info: info.mean_batch == 1)
    assert alone.first_tick - shared.first_tick < 1000, "it has 1999, and may have ended by itself"


def test_a_caller_that_goes_while_it_sends(server: Server, kserve: RunningGateway) -> None:
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "IMAGE",
                    "datatype": "UINT8",
                    "shape": [1, 512, 512, 3],
                    "parameters": {"binary_data_size": 512 * 512 * 3},
                }
            ]
        }
    ).encode()
    lines = (
        "POST /v2/models/edit/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n"
        f"Content-Length: {len(head) + 512 * 512 * 3}\r\n\r\n"
    )
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", kserve.port)) as connection:
            connection.sendall(lines.encode() + head + bytes(300_000))
    with Client(kserve.url) as client:
        assert client.generate("a circle", steps=2).info.ticks == 2
    assert server.process.poll() is None

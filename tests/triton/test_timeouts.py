"""Requests whose caller has stopped waiting leave the queues of a real server without being run."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from bench.server import Server
from tessera.errors import TimedOut, UnknownJob
from tessera_client import AsyncClient, Client, aio_connection, client, wire
from tessera_client import connection as sync
from tests.samples.jobs import unique

SENTENCE = "waited in a queue of the server for longer than its timeout"


@pytest.fixture(autouse=True)
def gone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes every caller to be gone after a microsecond."""
    monkeypatch.setattr(wire, "GRACE_S", 1.5e-6 - sync.JOB_TIMEOUT)
    for module in (sync, aio_connection, client):
        monkeypatch.setattr(module, "COMES_WITHIN_S", 0.0)


def picture(opened: Any, model: str, job: str) -> Any:
    if model == "generate":
        return opened.generate("a", job_id=job, timeout=sync.JOB_TIMEOUT)
    image = np.zeros((64, 64, 3), np.uint8)
    return opened.edit(
        image, (0, 0, 32, 32), "a", job_id=job, timeout=sync.JOB_TIMEOUT, mode="dense"
    )


@pytest.mark.parametrize("model", ["generate", "edit"])
def test_a_request_that_nobody_waits_for_is_not_run(client: Client, model: str) -> None:
    job = unique("late")
    with pytest.raises(TimedOut, match=SENTENCE):
        picture(client, model, job)
    with pytest.raises(UnknownJob):
        client.status(job)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", ["generate", "edit"])
def test_the_async_client_sends_its_timeout_too(server: Server, protocol: str, model: str) -> None:
    async def session() -> None:
        async with AsyncClient(getattr(server, protocol)) as opened:
            with pytest.raises(TimedOut, match=SENTENCE):
                await picture(opened, model, unique("late"))

    asyncio.run(session())

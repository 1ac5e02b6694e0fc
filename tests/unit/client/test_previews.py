"""Previews as the clients hand them on."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from tessera_client import AsyncClient, Client, JobStatus, Preview
from tests.fakes.transport import AsyncFakeTransport, FakeTransport
from tests.samples.waiting import until


def test_each_new_preview_is_handed_on_once() -> None:
    seen: list[Preview] = []
    news: list[JobStatus] = []
    transport = FakeTransport(during=lambda: until(lambda: len(news) >= 6))
    with Client(transport=transport) as client:
        client.generate("a", on_preview=seen.append, on_progress=news.append)
    assert [(p.step, p.steps) for p in seen] == [(1, 2), (2, 2)]
    assert seen[0].image.shape == (1, 2, 3)
    assert seen[0].image.dtype == np.uint8
    assert {n.phase for n in news} == {"denoising"}
    assert {c["ACTION"] for c in transport.sent("jobs")} == {b"preview"}


def test_previews_of_the_async_client() -> None:
    seen: list[Preview] = []

    class Slow(AsyncFakeTransport):
        async def infer(self, call: Any, timeout: float) -> Any:
            if call.model == "generate":
                end = time.monotonic() + 300
                while len(seen) < 2 and time.monotonic() < end:
                    await asyncio.sleep(0.01)
            return await super().infer(call, timeout)

    async def session() -> None:
        async with AsyncClient(transport=Slow()) as client:
            await client.generate("a", on_preview=seen.append)
            assert await client.preview("j", "vae")

    asyncio.run(session())
    assert [p.step for p in seen] == [1, 2]


def test_a_server_without_previews_still_tells_progress() -> None:
    seen: list[Preview] = []
    news: list[JobStatus] = []
    transport = FakeTransport(during=lambda: until(lambda: len(news) >= 2))
    transport.refuses_previews = True
    sentence = "there are no previews: ACTION is 'preview'; accepted: status, cancel"
    with pytest.warns(UserWarning, match=sentence):
        Client(transport=transport).generate("a", on_preview=seen.append, on_progress=news.append)
    assert not seen
    assert [c["ACTION"] for c in transport.sent("jobs")][:3] == [b"preview", b"status", b"status"]


def test_one_preview_by_the_vae() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as client:
        assert client.preview("j", "vae") is None
        preview = client.preview("j", "vae")
    assert transport.sent("jobs")[0] == {
        "ACTION": b"preview",
        "JOB_ID": b"j",
        "DECODER": b"vae",
    }
    assert preview is not None
    assert preview.enlarged().size == (16, 8)

"""The async client around a fake transport."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import Any

import numpy as np
import pytest

from tessera.contract import JobStatus
from tessera.errors import (
    Unavailable,
)
from tessera.types import Array
from tessera_client import AsyncClient
from tessera_client.wire import Call
from tests.fakes.transport import AsyncFakeTransport
from tests.samples.waiting import PATIENCE_S


def test_the_async_client_knows_templates() -> None:
    async def session() -> None:
        async with AsyncClient(transport=AsyncFakeTransport()) as opened:
            assert (await opened.register_template(template="abc")).recorded
            assert len((await opened.templates())["templates"]) == 2
            assert await opened.evict_template("abc") == 7

    asyncio.run(session())


@pytest.mark.parametrize("edits", [False, True], ids=["generate", "edit"])
def test_pictures_that_are_given_out_are_not_kept(edits: bool) -> None:
    async def session() -> list[int]:
        given: list[weakref.ref[Any]] = []
        alive: list[int] = []
        async with AsyncClient(transport=AsyncFakeTransport()) as opened:
            if edits:
                image = np.zeros((8, 8, 3), np.uint8)
                results = opened.edit_many(image, (0, 0, 4, 4), "a", n=20)
            else:
                results = opened.generate_many("a", n=20)
            async for result in results:
                given.append(weakref.ref(result))
                alive.append(sum(each() is not None for each in given))
        return alive

    assert max(asyncio.run(session())) <= 2, "the latest, and the one before it"


def test_the_async_client_does_the_same() -> None:
    async def session() -> None:
        transport = AsyncFakeTransport(Unavailable("busy"))
        async with AsyncClient(transport=transport) as opened:
            result = await opened.generate("a", seed=3, on_progress=lambda s: None)
            assert result.info.seed == 7
            assert (await opened.status("j")).step == 1
            assert (await opened.cancel("j")).total == 2
            assert not (await opened.health()).ready
        assert transport.inner.closed
        assert len(transport.inner.sent("generate")) == 2

    asyncio.run(session())


class Slow(AsyncFakeTransport):
    """Draws long enough for a question or two about progress."""

    async def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        if call.model == "generate":
            await asyncio.sleep(0.3)
        return await super().infer(call, timeout)


class CancelLosing(AsyncFakeTransport):
    """Answers questions for a job's status when cancelled, as `asyncio.wait_for` did at times."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        if call.model == "jobs":
            self.asked.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        else:
            await self.asked.wait()
        return await super().infer(call, timeout)


def test_progress_ends_with_its_job_though_a_cancellation_is_lost() -> None:
    async def session() -> None:
        client = AsyncClient(transport=CancelLosing())
        seen: list[JobStatus] = []
        drawing = client.generate("a", on_progress=seen.append)
        result = await asyncio.wait_for(drawing, PATIENCE_S)
        assert result.info.seed == 7
        count = len(seen)
        assert count == 1, "the one question that was under way"
        await asyncio.sleep(0.3)
        assert len(seen) == count, "it goes on asking"

    asyncio.run(session())


def test_an_error_in_on_progress_is_raised_by_the_async_client() -> None:
    def report(status: JobStatus) -> None:
        raise LookupError(status.phase)

    async def session() -> None:
        with pytest.raises(LookupError, match="denoising"):
            await AsyncClient(transport=Slow()).generate("a", on_progress=report)

    asyncio.run(session())


def test_cancelling_the_task_cancels_the_job() -> None:
    async def session() -> None:
        transport = AsyncFakeTransport(asyncio.CancelledError())
        with pytest.raises(asyncio.CancelledError):
            await AsyncClient(transport=transport).generate("a", job_id="mine")
        assert transport.inner.sent("jobs") == [{"ACTION": b"cancel", "JOB_ID": b"mine"}]

    asyncio.run(session())

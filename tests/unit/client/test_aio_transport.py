"""The async transport around a fake of tritonclient."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from tessera.types import Array
from tessera_client.aio_transport import AsyncHttpTransport
from tessera_client.messages import job_call


class AnswerLater:
    """Stands in for tritonclient: answers when told to."""

    def __init__(self) -> None:
        self.answer = asyncio.get_running_loop().create_future()

    async def infer(self, **arguments: Any) -> Any:
        return await self.answer

    async def is_server_ready(self) -> Any:
        return await self.answer


@pytest.mark.parametrize("later", range(4), ids=lambda n: f"{n} turns of the loop later")
@pytest.mark.parametrize(
    "ask",
    [lambda t: t.infer(job_call("status", "j"), 5.0), lambda t: t.ready()],
    ids=["infer", "ready"],
)
def test_a_cancellation_that_comes_with_the_answer_is_not_lost(
    ask: Callable[[AsyncHttpTransport], Awaitable[Any]], later: int
) -> None:
    async def session() -> None:
        transport = AsyncHttpTransport("localhost:1")
        transport._opened = triton = AnswerLater()
        task = asyncio.ensure_future(ask(transport))
        await asyncio.sleep(0.01)
        triton.answer.set_result(InferResult)
        for _ in range(later):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert later  # it was done before
            assert await task

    asyncio.run(session())


class InferResult:
    """An answer of tritonclient."""

    @staticmethod
    def as_numpy(name: str) -> Array:
        return np.zeros(1)

"""The async transport around a fake of aiohttp."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest

from tessera_client.address import address_of
from tessera_client.aio_http_transport import AsyncHttpTransport
from tessera_client.messages import job_call

ANSWER = json.dumps(
    {"outputs": [{"name": "RESULT", "datatype": "BYTES", "shape": [1, 1], "data": ["{}"]}]}
).encode()


class AnswerLater:
    """Stands in for aiohttp's session, and its answer: comes when told to."""

    status = 200
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.answer = asyncio.get_running_loop().create_future()

    def request(self, *arguments: Any, **more: Any) -> Any:
        return self

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def read(self) -> Any:
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
    async def talk() -> None:
        transport = AsyncHttpTransport(address_of("http://localhost:1"))
        session: Any = AnswerLater()
        transport._opened = session
        task = asyncio.ensure_future(ask(transport))
        await asyncio.sleep(0.01)
        session.answer.set_result(ANSWER)
        for _ in range(later):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert later  # it was done before
            assert await task

    asyncio.run(talk())

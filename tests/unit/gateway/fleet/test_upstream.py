"""Answers of a fleet, read as those of one server."""

from __future__ import annotations

import asyncio

from tessera_gateway.fleet.upstream import Made


def test_a_whole_answer_is_read_like_an_open_one() -> None:
    async def run() -> None:
        async with Made(503, {}, b"a sentence") as answer:
            assert await answer.content.read(5) == b"a sen"
            assert await answer.content.read() == b"a sentence"
            assert [piece async for piece in answer.content.iter_any()] == [b"a sentence"]

    asyncio.run(run())

"""Answers that several callers share."""

from __future__ import annotations

import asyncio

import pytest

from tessera.errors import UnknownJob
from tessera_gateway.shared import Shared


class Server:
    """Answers with how often it was asked, when `go` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()

    async def answer(self, key: str) -> int:
        self.asked.append(key)
        await self.go.wait()
        if key == "bad":
            raise UnknownJob(key)
        return len(self.asked)


def test_those_who_ask_at_a_time_ask_once() -> None:
    async def session() -> None:
        server = Server()
        shared = Shared(server.answer, 60.0)
        waiting = [asyncio.create_task(shared.get(key)) for key in ("a", "b", "a", "a")]
        await asyncio.sleep(0)
        waiting[0].cancel()  # it asked; the others still get their answer
        await asyncio.sleep(0)
        server.go.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert answers[1:] == [2, 2, 2]
        assert await shared.get("a") == 2
        assert server.asked == ["a", "b"]

    asyncio.run(session())


def test_an_answer_is_asked_for_again_after_its_time() -> None:
    async def session() -> None:
        server = Server()
        server.go.set()
        shared = Shared(server.answer, 0.0)
        assert [await shared.get("a"), await shared.get("a")] == [1, 2]

    asyncio.run(session())


def test_an_error_is_shared_too() -> None:
    async def session() -> None:
        server = Server()
        server.go.set()
        shared = Shared(server.answer, 60.0)
        for _ in range(2):
            with pytest.raises(UnknownJob):
                await shared.get("bad")
        assert server.asked == ["bad"]

    asyncio.run(session())


def test_nothing_is_asked_for_again_sooner() -> None:
    async def session() -> None:
        asked = []

        async def answer(key: str) -> str | None:
            asked.append(key)
            return "there" if len(asked) > 1 else None

        shared = Shared(answer, 60.0, 0.0)
        assert [await shared.get("a") for _ in range(3)] == [None, "there", "there"]
        assert len(asked) == 2

    asyncio.run(session())

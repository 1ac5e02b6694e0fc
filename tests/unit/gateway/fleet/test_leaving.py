"""Workers that leave a fleet while requests are under way, and those that come back."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tessera_gateway.fleet import pool, wire
from tessera_gateway.fleet.settings import Server
from tests.samples.fronts import fleet

DRAW = wire.request_of("generate", {"PROMPT": "x", "JOB_ID": "j"})


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_whose_worker_leaves_the_fleet(
    monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Its connection is closed after some time. If it has not begun, another worker gets it."""
    monkeypatch.setattr(pool, "CLOSES_WITHIN_S", 0.1)

    async def run() -> None:
        async with fleet() as it:
            first, second = it.workers
            first.holds = True
            task = asyncio.ensure_future(it.call(DRAW))
            while not first.drawn:
                await asyncio.sleep(0.01)
            if begun:
                first.load["running"] = [{"job": "j", "left": 3, "height": 8, "width": 8}]
                await it.pool.ask(min(it.pool.members))
            it.pool.have([it.pool.members[max(it.pool.members)].server])
            if not begun:
                assert wire.first_text(await task) == second.name.encode()
                return
            with pytest.raises(grpc.aio.AioRpcError, match="ended the connection") as caught:
                await task
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert second.drawn == []

    asyncio.run(run())


def test_a_caller_that_leaves_while_the_connection_is_closed() -> None:
    """Its call ends as it would otherwise."""

    async def run() -> None:
        async with fleet() as it:
            it.workers[0].holds = True
            member = it.pool.members[min(it.pool.members)]
            task = asyncio.ensure_future(member.infer(DRAW))
            while not it.workers[0].drawn:
                await asyncio.sleep(0.01)
            closing = asyncio.ensure_future(member.close())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            it.workers[0].holds = False
            await closing

    asyncio.run(run())


def test_connections_are_tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """GRPC would pause for up to two minutes, and a worker that is back stay unseen."""
    told: dict[str, int] = {}
    monkeypatch.setattr(grpc.aio, "insecure_channel", lambda _, options: told.update(options))
    pool.Member(Server("127.0.0.1:1", "127.0.0.1:2"))
    assert told["grpc.max_reconnect_backoff_ms"] <= 2000
    assert told["grpc.min_reconnect_backoff_ms"] <= 5000

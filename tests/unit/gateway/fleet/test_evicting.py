"""Evictions of templates while a worker is gone."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tessera_gateway.fleet import pool, wire
from tests.samples.fronts import fleet
from tests.samples.waiting import PATIENCE_S

EVICT = wire.request_of("templates", {"ACTION": "evict", "TEMPLATE": "t"})


@pytest.mark.parametrize("seen", [False, True])
def test_an_eviction_is_not_done_while_a_copy_may_stay(
    monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """Whether the front has seen that the worker is gone, or asks it in vain."""
    monkeypatch.setattr(pool, "TELLS_EVERY_S", PATIENCE_S)

    async def run() -> None:
        async with fleet() as it:
            gone = max(it.pool.members)
            it.workers[0].templates = {"template": "t", "bytes": 7}
            it.workers[1].load["templates"] = ["t"]
            await it.pool.ask(gone)
            await it.workers[1].stop()
            if seen:
                it.pool.book.fail(gone)
            for asked in (1, 2):
                with pytest.raises(grpc.aio.AioRpcError, match="template t may still") as caught:
                    await it.call(EVICT)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
                assert it.workers[0].evicted == ["t"] * asked

    asyncio.run(run())


def test_a_worker_that_is_gone_without_the_template_does_not_matter() -> None:
    async def run() -> None:
        async with fleet() as it:
            it.workers[0].templates = {"template": "t", "bytes": 7}
            await it.workers[1].stop()
            it.pool.book.fail(max(it.pool.members))
            await it.call(EVICT)
            assert it.workers[0].evicted == ["t"]

    asyncio.run(run())

"""Jobs that nobody waits for, and that a worker may not know yet."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from tessera_gateway.fleet import several
from tessera_gateway.fleet.several import COMES_WITHIN_S, cancel


class Worker:
    """Knows the job from the time `comes_at` on, which passes by sleeping."""

    def __init__(self, comes_at: float, code: grpc.StatusCode = grpc.StatusCode.NOT_FOUND) -> None:
        self.now = 0.0
        self.cancelled = False
        self._comes_at, self._code = comes_at, code

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def call(self, method: str, data: bytes, timeout: float) -> bytes:
        if self.now < self._comes_at:
            empty = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(self._code, empty, empty, "JOB_ID is 'j'")
        self.cancelled = True
        return b""


def tell(worker: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(several, "time", worker)
    with monkeypatch.context() as patched:
        patched.setattr(several, "asyncio", worker)
        asyncio.run(cancel(worker, "j"))
    return worker


@pytest.mark.parametrize("comes_at", [0.0, 1.0, 200.0])
def test_a_job_is_cancelled_whenever_it_comes(
    comes_at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tell(Worker(comes_at), monkeypatch)
    assert worker.cancelled
    assert worker.now < comes_at + 1


def test_a_job_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tell(Worker(1e9), monkeypatch)
    assert COMES_WITHIN_S < worker.now < COMES_WITHIN_S + 2


def test_a_worker_that_is_gone_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tell(Worker(1e9, grpc.StatusCode.UNAVAILABLE), monkeypatch)
    assert worker.now == 0

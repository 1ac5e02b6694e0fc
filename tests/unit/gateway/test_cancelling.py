"""The end of jobs that nobody waits for, and that the server may not know yet."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.errors import UnknownJob
from tessera_gateway import cancelling
from tessera_gateway.cancelling import cancel_job
from tessera_gateway.settings import GatewaySettings


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Gateway:
    """In front of a server that knows the job from `comes_at` on."""

    def __init__(self, clock: Clock, comes_at: float) -> None:
        self.settings = GatewaySettings(timeout=60.0)
        self.client = self
        self.closing = False
        self.asked: list[float] = []
        self.cancelled = False
        self._clock, self._comes_at = clock, comes_at

    async def cancel(self, job: str) -> None:
        self.asked.append(self._clock.now)
        if self._clock.now < self._comes_at:
            raise UnknownJob(job)
        self.cancelled = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cancelling, "time", clock)
    monkeypatch.setattr(cancelling, "asyncio", SimpleNamespace(sleep=clock.sleep))
    return clock


def cancel(gateway: Any) -> None:
    asyncio.run(cancel_job(gateway, "j"))


@pytest.mark.parametrize("comes_at", [0.0, 1.0, 50.0])
def test_a_job_is_cancelled_whenever_it_comes(clock: Clock, comes_at: float) -> None:
    gateway = Gateway(clock, comes_at)
    cancel(gateway)
    assert gateway.cancelled
    assert clock.now <= comes_at + 0.5


def test_a_job_that_never_comes_is_given_up_when_its_time_is_over(clock: Clock) -> None:
    gateway = Gateway(clock, 1e9)
    cancel(gateway)
    assert 60 < clock.now < 62
    assert len(gateway.asked) < 150, "the server has other things to do"


def test_a_gateway_that_ends_does_not_wait_for_it(clock: Clock) -> None:
    gateway = Gateway(clock, 50.0)
    gateway.closing = True
    cancel(gateway)
    assert 2 < clock.now < 4

"""The end of jobs that nobody waits for, and that the server may not know yet."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.errors import UnknownJob
from tessera_client.messages import EditOptions
from tessera_gateway import cancelling
from tessera_gateway.cancelling import cancel_job
from tessera_gateway.drawing import Drawing, draw
from tessera_gateway.kept import KeptPictures
from tessera_gateway.keys import Keyring
from tessera_gateway.settings import GatewaySettings
from tessera_gateway.state import Gateway


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Unanswered:
    """A server that draws for ever."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled: list[str] = []

    async def generate(self, prompt: str, **options: Any) -> None:
        self.began.set()
        await asyncio.Event().wait()

    async def cancel(self, job: str) -> None:
        self.cancelled.append(job)

    async def status(self, job: str) -> None:
        raise UnknownJob(job)

    preview = status

    async def close(self) -> None:
        return


class Fronted:
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
    gateway = Fronted(clock, comes_at)
    cancel(gateway)
    assert gateway.cancelled
    assert clock.now <= comes_at + 0.5


def test_a_job_that_never_comes_is_given_up_when_its_time_is_over(clock: Clock) -> None:
    gateway = Fronted(clock, 1e9)
    cancel(gateway)
    assert 60 < clock.now < 62
    assert len(gateway.asked) < 150, "the server has other things to do"


def test_a_gateway_that_ends_does_not_wait_for_it(clock: Clock) -> None:
    gateway = Fronted(clock, 50.0)
    gateway.closing = True
    cancel(gateway)
    assert 2 < clock.now < 4


def test_a_drawing_that_is_given_up_is_cancelled_by_the_gateway_too() -> None:
    """The SDK tries for a moment only."""

    async def session() -> list[str]:
        server, kept = Unanswered(), KeptPictures(seconds=1.0, budget=1)
        client: Any = server
        gateway = Gateway(GatewaySettings(), client, Keyring(None), kept)
        drawing = asyncio.ensure_future(draw(gateway, Drawing("a", "j", EditOptions())))
        await server.began.wait()
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing
        await gateway.close()
        return server.cancelled

    assert asyncio.run(session()) == ["j"]

"""The news of a job as events."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.contract import JobStatus
from tessera_gateway import jobs
from tessera_gateway.sse import PING

SECONDS = 40


class Waiting:
    """A gateway with a job that waits for so long, and a clock that moves by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.statuses = self

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def get(self, job_id: str) -> JobStatus:
        phase = "queued" if self.now < SECONDS else "done"
        return JobStatus(job_id, phase, 0, 0, False, 0.0, None, None)


def test_a_stream_without_news_is_kept_open(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway: Any = Waiting()
    monkeypatch.setattr(jobs, "time", gateway)
    monkeypatch.setattr(jobs, "asyncio", SimpleNamespace(sleep=gateway.sleep))

    async def session() -> list[tuple[float, bytes]]:
        first = await gateway.get("j")
        events = jobs._events(gateway, first, previews=False)
        return [(gateway.now, each) async for each in events]

    told = asyncio.run(session())
    assert [when for when, each in told if each == PING] == [15, 30]
    assert [when for when, each in told if each.startswith(b"event: status")] == [0, SECONDS]

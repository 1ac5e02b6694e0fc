"""Pictures of one request: what the failure of one is to the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.testclient import TestClient

from tessera.errors import InvalidInput
from tessera_gateway import drawing
from tessera_gateway.drawing import all_of
from tests.fakes.transport import AsyncFakeTransport
from tests.samples.waiting import PATIENCE_S

GENERATIONS, TXT2IMG = "/v1/images/generations", "/sdapi/v1/txt2img"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (GENERATIONS, {"n": 10}, 400),
        (GENERATIONS, {"n": 10, "stream": True}, 200),
        (TXT2IMG, {"batch_size": 10}, 400),
    ],
    ids=["openai", "events", "sdapi"],
)
def test_what_all_are_refused_for_is_no_reason_to_look_for_jobs(
    http: TestClient,
    transport: AsyncFakeTransport,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
    status: int,
) -> None:
    """However long the server takes to refuse the others."""
    monkeypatch.setattr(drawing, "MOMENT_S", 0.0)
    monkeypatch.setattr(drawing, "REFUSED_S", PATIENCE_S)
    infer, refused = transport.infer, list[int]()

    async def refusing(call: Any, timeout: float) -> Any:
        if call.model != "generate":
            return await infer(call, timeout)
        turns = 5 * len(refused)
        refused.append(turns)
        for _ in range(turns):
            await asyncio.sleep(0)
        raise InvalidInput("LORAS[0].name", "none", "ink")

    monkeypatch.setattr(transport, "infer", refusing)
    answer = http.post(path, json={"prompt": "x", **body})
    assert answer.status_code == status
    assert "accepted: ink" in answer.text
    assert len(refused) == 10
    assert "jobs" not in [model for model, _ in transport.inner.calls]


def test_the_first_error_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MOMENT_S", 0.01)
    ended: list[str] = []

    async def failing() -> None:
        raise ValueError("first")

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("endless")

    async def session() -> None:
        with pytest.raises(ValueError, match="first"):
            await all_of([endless(), failing(), endless()])
        waiting = asyncio.ensure_future(all_of([endless()]))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(session())
    assert ended == ["endless"] * 3


def test_results_are_in_order() -> None:
    async def slow(number: int) -> int:
        for _ in range(3 - number):
            await asyncio.sleep(0)
        return number

    async def session() -> list[int]:
        return await all_of(slow(number) for number in range(3))

    assert asyncio.run(session()) == [0, 1, 2]

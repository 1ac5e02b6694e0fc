"""The client around a fake transport."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from typing import Any

import numpy as np
import pytest

from tessera.errors import (
    Cancelled,
    InternalError,
    InvalidInput,
    TesseraError,
    TimedOut,
    Unavailable,
)
from tessera_client import AsyncClient, Client, Lora, aio_connection, connection
from tests.fakes.transport import INFO, AsyncFakeTransport, FakeTransport
from tests.samples.waiting import until


def test_only_what_is_given_is_sent() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as opened:
        result = opened.generate("a circle", seed=0, guidance=None)
    assert transport.closed
    (sent,) = transport.sent("generate")
    assert set(sent) == {"PROMPT", "SEED", "JOB_ID"}
    assert (sent["PROMPT"], sent["SEED"]) == (b"a circle", 0)
    assert result.image.size == (8, 4)
    assert result.info.seed == 7
    assert not hasattr(result.info, "news_of_a_later_server")


def test_a_picture_that_was_damaged_on_its_way_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = zlib.crc32(bytes(4 * 8 * 3))
    with Client(transport=FakeTransport()) as opened:
        monkeypatch.setitem(INFO, "image_crc32", right)
        assert opened.generate("a").info.image_crc32 == right
        monkeypatch.setitem(INFO, "image_crc32", right ^ 1)
        with pytest.raises(Unavailable, match="IMAGE was corrupted on its way; send the request"):
            opened.generate("a")


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(
        TypeError, match="unknown option 'stepz'; known: negative_prompt, prompt_syntax, clip_skip"
    ):
        Client(transport=FakeTransport()).generate("a", stepz=3)  # type: ignore[call-arg]


def test_templates_are_recorded_listed_and_evicted() -> None:
    transport = FakeTransport()
    image = np.zeros((8, 16, 3), np.uint8)
    with Client(transport=transport) as opened:
        done = opened.register_template(image, steps=4, copies=2, prompt="a", clip_skip=1)
        assert (done.bytes, done.copies) == (5_000_000, 1)
        assert opened.templates()["disk"]["budget"] == 10_000_000
        assert opened.evict_template("abc") == 7
    register, listing, evict = transport.sent("templates")
    assert set(register) == {"ACTION", "IMAGE", "STEPS", "COPIES", "PROMPT", "CLIP_SKIP"}
    assert (register["STEPS"], register["COPIES"]) == (4, 2)
    assert listing == {"ACTION": b"list"}
    assert evict == {"ACTION": b"evict", "TEMPLATE": b"abc"}


def test_the_adapters_of_a_server() -> None:
    with Client(transport=FakeTransport()) as opened:
        ink, torn = opened.adapters()
    assert (ink.name, ink.ranks, ink.targets["unet"], ink.problem) == ("ink", (4, 8), 20, None)
    assert (torn.ranks, torn.problem) == (None, "is damaged or ends early")

    async def session() -> None:
        async with AsyncClient(transport=AsyncFakeTransport()) as opened:
            assert await opened.adapters() == [ink, torn]

    asyncio.run(session())


def test_the_policy_of_loras_is_a_request_parameter() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as opened:
        opened.generate("a", loras=[Lora("ink", 0.5)], lora_policy="bounded")
        opened.generate("a")
    (first, second) = transport.parameters
    assert (first, second) == ({"lora_policy": "bounded"}, {})
    assert json.loads(transport.sent("generate")[0]["LORAS"]) == [{"name": "ink", "weight": 0.5}]


def test_retries_what_had_no_effect() -> None:
    transport = FakeTransport(Unavailable("busy"), Unavailable("busy"))
    Client(transport=transport, retries=2).generate("a", job_id="j")
    assert [c["JOB_ID"] for c in transport.sent("generate")] == [b"j"] * 3
    assert [name for name, _ in transport.calls] == ["generate", "jobs"] * 2 + ["generate"]
    assert transport.sent("jobs") == [{"ACTION": b"cancel", "JOB_ID": b"j"}] * 2


@pytest.mark.parametrize(
    "failure",
    [
        Unavailable("connection lost", undone=False),
        InvalidInput("STEPS", 0, "more"),
        InternalError("internal error 1"),
        Cancelled("cancelled"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_does_not_retry_the_rest(failure: TesseraError) -> None:
    transport = FakeTransport(failure)
    with pytest.raises(type(failure)) as caught:
        Client(transport=transport).generate("a")
    assert caught.value is failure
    assert len(transport.sent("generate")) == 1
    assert not transport.sent("jobs")


def test_gives_up_after_the_retries() -> None:
    transport = FakeTransport(*[Unavailable("busy")] * 9)
    with pytest.raises(Unavailable, match="busy"):
        Client(transport=transport, retries=3).generate("a")
    assert len(transport.sent("generate")) == 4


@pytest.mark.parametrize("reason", [TimedOut("late"), KeyboardInterrupt()], ids=["timeout", "^C"])
def test_a_caller_who_stops_waiting_cancels_the_job(reason: BaseException) -> None:
    transport = FakeTransport(reason)
    with pytest.raises(type(reason)):
        Client(transport=transport).generate("a", job_id="mine")
    assert transport.sent("jobs") == [{"ACTION": b"cancel", "JOB_ID": b"mine"}]


@pytest.mark.parametrize(
    ("within", "questions"), [(60.0, 4), (0.0, 1)], ids=["on its way", "too late"]
)
def test_a_job_that_is_on_its_way_is_cancelled_when_it_comes(
    monkeypatch: pytest.MonkeyPatch, within: float, questions: int
) -> None:
    for module in (connection, aio_connection):
        monkeypatch.setattr(module, "COMES_WITHIN_S", within)
    transport = FakeTransport(TimedOut("late"), unknown=3)
    with pytest.raises(TimedOut):
        Client(transport=transport).generate("a", job_id="mine")
    assert transport.sent("jobs") == [{"ACTION": b"cancel", "JOB_ID": b"mine"}] * questions

    async def session() -> None:
        transport = AsyncFakeTransport(TimedOut("late"), unknown=3)
        with pytest.raises(TimedOut):
            await AsyncClient(transport=transport).generate("a", job_id="mine")
        assert len(transport.inner.sent("jobs")) == questions

    asyncio.run(session())


def test_a_job_is_not_waited_for_before_its_request_is_sent_again() -> None:
    transport = FakeTransport(Unavailable("busy"), unknown=9)
    Client(transport=transport).generate("a")
    assert len(transport.sent("jobs")) == 1

    async def session() -> None:
        transport = AsyncFakeTransport(Unavailable("busy"), unknown=9)
        await AsyncClient(transport=transport).generate("a")
        assert len(transport.inner.sent("jobs")) == 1

    asyncio.run(session())


def test_progress_is_reported_while_the_job_runs() -> None:
    seen: list[Any] = []
    transport = FakeTransport(during=lambda: until(lambda: len(seen) >= 3))
    Client(transport=transport).generate("a", on_progress=seen.append)
    assert seen[0].phase == "denoising"
    assert (seen[0].step, seen[0].total) == (1, 2)
    count = len(seen)
    time.sleep(0.05)
    assert len(seen) == count


def test_health_names_what_is_not_ready() -> None:
    health = Client(transport=FakeTransport()).health()
    assert health.server
    assert not health.ready
    assert [m for m, ready in health.models.items() if not ready] == ["templates"]

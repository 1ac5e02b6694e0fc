"""The fleet's gRPC service in front of fake workers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from tessera_gateway.fleet import pool, wire
from tests.samples.fronts import fleet
from tests.samples.waiting import PATIENCE_S


def draw(job: str = "") -> bytes:
    return wire.request_of("generate", {"PROMPT": "x"} | ({"JOB_ID": job} if job else {}))


def ask_of(job: str, action: str = "status") -> bytes:
    return wire.request_of("jobs", {"ACTION": action, "JOB_ID": job})


def test_a_request_gets_a_name_and_an_answer() -> None:
    async def run() -> None:
        async with fleet() as it:
            assert wire.first_text(await it.call(draw())) == it.workers[0].name.encode()
            (job,) = it.workers[0].drawn
            assert len(job) == 32
            assert not any(entry.sent for entry in it.pool.book.workers.values())

    asyncio.run(run())


def test_requests_spread_at_once() -> None:
    """Before any worker has told of them."""

    async def run() -> None:
        async with fleet() as it:
            for worker in it.workers:
                worker.holds = True
            tasks = [asyncio.ensure_future(it.call(draw(str(i)))) for i in range(6)]
            while sum(len(w.drawn) for w in it.workers) < 6:
                await asyncio.sleep(0.01)
            assert [len(w.drawn) for w in it.workers] == [3, 3]
            for worker in it.workers:
                worker.holds = False
            await asyncio.gather(*tasks)

    asyncio.run(run())


def test_jobs_stick_to_their_worker() -> None:
    async def run() -> None:
        async with fleet() as it:
            for index in range(4):
                drawn_by = wire.first_text(await it.call(draw(str(index))))
                assert wire.first_text(await it.call(ask_of(str(index)))) == drawn_by

    asyncio.run(run())


def test_a_job_of_another_router_is_found() -> None:
    async def run() -> None:
        async with fleet() as it:
            it.workers[1].jobs.add("theirs")
            assert wire.first_text(await it.call(ask_of("theirs"))) == it.workers[1].name.encode()
            with pytest.raises(grpc.aio.AioRpcError, match="JOB_ID is 'nobody'") as caught:
                await it.call(ask_of("nobody"))
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND

    asyncio.run(run())


def test_what_a_dead_worker_would_have_got_goes_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless it is asked for its load, and left out, before it would get anything."""
    monkeypatch.setattr(pool, "TELLS_EVERY_S", PATIENCE_S)

    async def run() -> None:
        async with fleet() as it:
            await it.workers[0].stop()
            for index in range(3):
                answer = await it.call(draw(str(index)))
                assert wire.first_text(answer) == it.workers[1].name.encode()
            assert it.pool.tried == 1  # then it is left out

    asyncio.run(run())


def test_a_worker_that_refuses_is_tried_again_later() -> None:
    async def run() -> None:
        async with fleet() as it:
            it.workers[0].fails = (grpc.StatusCode.UNAVAILABLE, "the server is being stopped")
            answer = await it.call(draw("j"))
            assert wire.first_text(answer) == it.workers[1].name.encode()
            assert (it.workers[0].drawn, it.workers[1].drawn) == (["j"], ["j"])
            it.workers[1].fails = it.workers[0].fails
            with pytest.raises(grpc.aio.AioRpcError, match="the server is being stopped"):
                await it.call(draw("k"))
            assert it.workers[0].drawn[1:] == it.workers[1].drawn[1:] == ["k"]

    asyncio.run(run())


def test_a_request_that_had_begun_is_not_sent_again() -> None:
    async def run() -> None:
        async with fleet() as it:
            first = it.workers[0]
            first.holds = True
            task = asyncio.ensure_future(it.call(draw("j")))
            while not first.drawn:
                await asyncio.sleep(0.01)
            first.load["running"] = [{"job": "j", "left": 3, "height": 8, "width": 8}]
            await it.pool.ask(min(it.pool.members))
            await first.stop()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await task
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert it.workers[1].drawn == []

    asyncio.run(run())


DEAD = "in ensemble 'generate', Stub process 'render_0_3' is not healthy."


@pytest.mark.parametrize(
    ("told", "sentence", "code"),
    [("STEPS is 0", "STEPS is 0", "INVALID_ARGUMENT"), (DEAD, "being restarted", "UNAVAILABLE")],
)
def test_other_errors_are_the_workers(told: str, sentence: str, code: str) -> None:
    async def run() -> None:
        async with fleet() as it:
            status = "INTERNAL" if told == DEAD else code
            it.workers[0].fails = (grpc.StatusCode[status], told)
            with pytest.raises(grpc.aio.AioRpcError, match=sentence) as caught:
                await it.call(draw("j"))
            assert caught.value.code() == grpc.StatusCode[code]
            assert it.workers[1].drawn == []

    asyncio.run(run())


def test_a_caller_that_leaves_cancels_its_job() -> None:
    async def run() -> None:
        async with fleet() as it:
            it.workers[0].holds = True
            task = asyncio.ensure_future(it.call(draw("j")))
            while not it.workers[0].drawn:
                await asyncio.sleep(0.01)
            task.cancel()
            async with asyncio.timeout(PATIENCE_S):
                while not it.workers[0].cancelled:
                    await asyncio.sleep(0.01)
            assert it.workers[0].cancelled == ["j"]

    asyncio.run(run())


def test_templates_of_all_workers() -> None:
    recording = {"steps": 4, "scheduler": "euler", "storage": "float32", "bytes": 7}

    def listing(*names: str, recordings: list[Any]) -> dict[str, Any]:
        templates = [
            {"template": n, "width": 8, "height": 8, "recordings": recordings} for n in names
        ]
        memory = {"hits": 3, "misses": 1, "bytes": 5, "hit_rate": 0.75}
        return {"templates": templates, "disk": {"bytes": 7, "budget": 9}, "memory": memory}

    async def run() -> None:
        async with fleet() as it:
            it.workers[0].templates = listing("t", "u", recordings=[recording])
            it.workers[1].templates = listing("t", "v", recordings=[])
            answer = await it.call(wire.request_of("templates", {"ACTION": "list"}))
            merged = json.loads(wire.first_text(answer))
            assert {t["template"]: len(t["recordings"]) for t in merged["templates"]} == {
                "t": 1,
                "u": 1,
                "v": 0,
            }
            assert [t["copies"] for t in merged["templates"]] == [2, 1, 1]
            assert merged["disk"] == {"bytes": 14, "budget": 18}
            assert merged["memory"] == {"hits": 6, "misses": 2, "bytes": 10, "hit_rate": 0.75}

    asyncio.run(run())


def test_a_template_is_registered_on_several_workers() -> None:
    def asked(copies: int) -> bytes:
        request = wire.request_of("templates", {"ACTION": "register", "TEMPLATE": "t"})
        data = copies.to_bytes(4, "little", signed=True)
        return wire.with_tensor(request, wire.Tensor("COPIES", (1, 1), data), "INT32")

    async def run() -> None:
        async with fleet() as it:
            it.workers[1].pictures["t"] = ((1, 1, 1, 3), b"rgb")
            it.workers[1].load["templates"] = ["t"]
            await it.pool.ask(max(it.pool.members))
            answer = json.loads(wire.first_text(await it.call(asked(2))))
            assert answer["copies"] == 2
            full = grpc.StatusCode.UNAVAILABLE, "there is no room"
            it.workers[0].fails = it.workers[1].fails = full
            wrong = grpc.StatusCode.INVALID_ARGUMENT, "COPIES is -2; accepted"
            for copies, (code, sentence) in ((-2, wrong), (2, full)):
                with pytest.raises(grpc.aio.AioRpcError, match=sentence) as caught:
                    await it.call(asked(copies))
                assert caught.value.code() == code

    asyncio.run(run())


def test_a_template_is_evicted_wherever_it_is() -> None:
    evict = wire.request_of("templates", {"ACTION": "evict", "TEMPLATE": "t"})

    async def run() -> None:
        async with fleet() as it:
            with pytest.raises(grpc.aio.AioRpcError, match="TEMPLATE is 't'"):
                await it.call(evict)
            it.workers[1].templates = {"template": "t", "bytes": 7}
            answer = json.loads(wire.first_text(await it.call(evict)))
            assert answer == {"template": "t", "bytes": 7}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "code", "sentence"),
    [
        (b"\xff", grpc.StatusCode.INVALID_ARGUMENT, "the request is none"),
        (
            wire.request_of("denoise", {"X": "y"}),
            grpc.StatusCode.NOT_FOUND,
            "'denoise' is not open",
        ),
        (
            wire.field(1, b"edit") + wire.field(5, wire.field(1, b"MASK") + wire.field(4, b"")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "shared memory: a worker may be on another machine",
        ),
        (
            wire.field(1, b"edit")
            + wire.field(
                6, wire.field(1, b"IMAGE") + wire.field(2, wire.field(1, b"shared_memory_region"))
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "shared memory: a worker may be on another machine",
        ),
    ],
    ids=["malformed", "internal model", "shared memory", "shared memory of an output"],
)
def test_what_is_refused(request_: bytes, code: grpc.StatusCode, sentence: str) -> None:
    async def run() -> None:
        async with fleet() as it:
            with pytest.raises(grpc.aio.AioRpcError, match=sentence) as caught:
                await it.call(request_)
            assert caught.value.code() == code

    asyncio.run(run())


def test_questions_are_answered_by_one_worker() -> None:
    async def run() -> None:
        async with fleet() as it:
            names = {await it.call(b"", "ServerMetadata") for _ in range(4)}
            assert names == {it.workers[0].name.encode()}
            await it.workers[0].stop()
            while min(it.pool.members) in it.pool.book.reached(time.monotonic()):
                await asyncio.sleep(0.01)
            assert await it.call(b"", "ServerMetadata") == it.workers[1].name.encode()
            with pytest.raises(grpc.aio.AioRpcError, match="no shared memory") as caught:
                await it.call(b"", "SystemSharedMemoryRegister")
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(run())


def test_statistics_are_sums() -> None:
    def counts(number: int) -> bytes:
        return wire.field(1, wire.field(1, b"generate") + wire.number(4, number))

    async def run() -> None:
        async with fleet() as it:
            for worker, number in zip(it.workers, (300, 7), strict=True):
                worker.statistics = counts(number)
            assert await it.call(b"", "ModelStatistics") == counts(307)
            it.workers[0].statistics = b""
            assert await it.call(b"", "ModelStatistics") == counts(7)
            it.workers[1].statistics = b""
            with pytest.raises(grpc.aio.AioRpcError, match="no statistics"):
                await it.call(b"", "ModelStatistics")

    asyncio.run(run())


def test_a_fleet_without_workers() -> None:
    async def run() -> None:
        async with fleet() as it:
            it.pool.have([])
            for data, method in ((draw(), "ModelInfer"), (b"", "ServerMetadata")):
                with pytest.raises(grpc.aio.AioRpcError, match="no worker") as caught:
                    await it.call(data, method)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

    asyncio.run(run())


def test_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    sha = hashlib.sha256(b"secret").hexdigest()
    keys.write_text(f'[[keys]]\nname = "me"\nsha256 = "{sha}"\n')

    async def run() -> None:
        async with fleet(keys) as it:
            for metadata in ((), (("authorization", "Bearer wrong"),)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await it.call(draw(), metadata=metadata)
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            mine = (("authorization", "Bearer secret"),)
            await it.call(draw(), metadata=mine)
            refused = [("templates", action) for action in ("list", "evict", "picture")]
            for model, action in (*refused, ("jobs", "load")):
                request = wire.request_of(model, {"ACTION": action})
                with pytest.raises(grpc.aio.AioRpcError, match="operator's key") as caught:
                    await it.call(request, metadata=mine)
                assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED

    asyncio.run(run())

"""What the picker tells Envoy, message by message. A real Envoy: tests/triton/fleet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import msgspec
import numpy as np
import pytest

from tessera_gateway.fleet import wire
from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.load import Defaults, Lines, Load
from tessera_gateway.fleet.picker import DESTINATION, EXT_PROC, Picker, resolved
from tessera_gateway.fleet.pool import Pool
from tessera_gateway.fleet.settings import Server
from tests.fakes.kserve import fake_workers
from tests.samples.waiting import PATIENCE_S

LOAD = Load("x", slots=4, lines=Lines((0.0, 1.0), (1.0, 1.0)), defaults=Defaults(10, 64, 64))
A, B = Server("10.0.0.1:8001", "10.0.0.1:8000"), Server("10.0.0.2:8001", "10.0.0.2:8000")
GRPC = {":path": "/inference.GRPCInferenceService/ModelInfer", "content-type": "application/grpc"}


def head(headers: dict[str, str], *, last: bool = False, duplex: bool = False) -> bytes:
    listed = b"".join(
        wire.field(1, wire.field(1, k.encode()) + wire.field(3, v.encode()))
        for k, v in headers.items()
    )
    told = wire.field(2, wire.field(1, listed) + (b"\x18\x01" if last else b""))
    return told + (wire.field(11, b"\x08\x04") if duplex else b"")


def body(data: bytes, *, last: bool = True) -> bytes:
    return wire.field(4, wire.field(1, data) + (b"\x10\x01" if last else b""))


def framed(request: bytes) -> bytes:
    return b"\0" + len(request).to_bytes(4, "big") + request


class Peer:
    """The context of a call."""

    def peer(self) -> str:
        """Envoy's address."""
        return "ipv4:127.0.0.1:9"


async def exchange(messages: list[bytes], *, workers: bool = True) -> tuple[Pool, list[bytes]]:
    pool = Pool(Book())
    if workers:
        pool.have([A, B])
        loaded = msgspec.structs.replace(LOAD, controls=("edges",))
        for server, load in ((A, LOAD), (B, loaded)):
            pool.book.tell(server.grpc, load, time.monotonic())

    async def sent() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    answers = [answer async for answer in Picker(pool)._process(sent(), Peer())]
    await pool.close()
    return pool, answers


def run(*messages: bytes, workers: bool = True) -> tuple[Pool, list[bytes]]:
    return asyncio.run(exchange(list(messages), workers=workers))


CONTROLLED = wire.request_of("generate", {"PROMPT": "x", "CONTROLS": '[{"name": "edges"}]'})


def test_the_best_comes_first_and_the_second_best_for_a_retry() -> None:
    pool, answers = run(head(GRPC), body(framed(CONTROLLED)))
    assert answers[0] == wire.field(1, b"")
    assert f"{B.grpc},{A.grpc}".encode() in answers[1]
    assert DESTINATION.encode() in answers[1]
    assert b"envoy.lb" in answers[1]
    ((peek, choice),) = pool.book.choices
    assert choice.worker == B.grpc
    assert len(peek.job) == 32
    assert peek.job.encode() in answers[1]


def test_it_counts_until_the_answer_begins() -> None:
    pool, answers = run(head(GRPC), body(framed(CONTROLLED)), wire.field(3, b""))
    assert answers[2] == wire.field(2, b"")
    assert pool.book.workers[B.grpc].sent == {}


async def left(pool: Pool, port: int, *, answered: bool) -> None:
    """Envoy ends the stream, as a client of gRPC does, with or without an answer before."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(f"/{EXT_PROC}/Process")()
        messages = [head(GRPC), body(framed(CONTROLLED))]
        for message in [*messages, *([wire.field(3, b"")] if answered else [])]:
            await call.write(message)
            await call.read()
        (entry,) = pool.book.workers.values()
        assert len(entry.sent) == (0 if answered else 1)
        call.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while entry.sent:
                await asyncio.sleep(0.01)


def test_a_caller_that_leaves_cancels_its_job_if_answers_are_told() -> None:
    """Else the end of a stream says nothing: Envoy may end it once it knows the worker."""

    async def serve() -> None:
        async with fake_workers("a") as ((worker,), servers):
            pool = Pool(Book())
            picker = Picker(pool)
            pool.have(servers)
            try:
                await pool.ask(servers[0].grpc)
                port = await picker.start("127.0.0.1", 0)
                for answered in (False, True):
                    await left(pool, port, answered=answered)
                    assert worker.asked_to_cancel == []
                await left(pool, port, answered=False)
                (last, _) = pool.book.choices[-1]
                async with asyncio.timeout(PATIENCE_S):
                    while not worker.asked_to_cancel:
                        await asyncio.sleep(0.01)
                assert worker.asked_to_cancel == [last.job]
            finally:
                await picker.close()
                await pool.close()

    asyncio.run(serve())


@pytest.mark.parametrize("over_grpc", [True, False])
def test_a_template_is_evicted_on_all_workers(over_grpc: bool) -> None:
    """On the last one by Envoy, so that the caller gets its answer."""
    texts = {"ACTION": "evict", "TEMPLATE": "t"}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [text]}
        for name, text in texts.items()
    ]
    content = msgspec.json.encode({"inputs": inputs})
    messages = [head({":path": "/v2/models/templates/infer"}), body(content)]
    if over_grpc:
        messages = [head(GRPC), body(framed(wire.request_of("templates", texts)))]

    async def evict() -> None:
        async with fake_workers("a", "b", "c") as (workers, servers):
            pool = Pool(Book())
            pool.have(servers)
            workers[1].load["templates"] = ["t"]
            for server in servers:
                await pool.ask(server.grpc)

            async def sent() -> AsyncIterator[bytes]:
                for message in messages:
                    yield message

            answers = [answer async for answer in Picker(pool)._process(sent(), Peer())]
            address = servers[1].grpc if over_grpc else servers[1].http
            assert address.encode() in answers[1]
            assert [worker.evicted for worker in workers] == [["t"], [], ["t"]]
            assert not pool.book.knowing("t", time.monotonic())
            await pool.close()

    asyncio.run(evict())


def test_an_eviction_is_not_done_while_a_copy_may_stay() -> None:
    """The rest is evicted all the same, on the worker that Envoy would have asked as well."""
    texts = {"ACTION": "evict", "TEMPLATE": "t"}

    async def evict() -> None:
        async with fake_workers("a", "b", "c") as (workers, servers):
            pool = Pool(Book())
            pool.have(servers)
            for worker in workers:
                worker.load["templates"] = ["t"]
            for server in servers:
                await pool.ask(server.grpc)
            await workers[0].stop()
            pool.book.fail(servers[0].grpc)

            async def sent() -> AsyncIterator[bytes]:
                yield head(GRPC)
                yield body(framed(wire.request_of("templates", texts)))

            answers = [answer async for answer in Picker(pool)._process(sent(), Peer())]
            assert b"template t may still be on workers" in answers[1]
            assert [worker.evicted for worker in workers] == [[], ["t"], ["t"]]
            await pool.close()

    asyncio.run(evict())


def test_a_callers_own_header_is_overwritten() -> None:
    _, answers = run(head(GRPC | {DESTINATION: "10.9.9.9:1"}), body(framed(CONTROLLED)))
    assert b"10.9.9.9" not in answers[1]
    assert b"\x18\x02" in answers[1], "OVERWRITE_IF_EXISTS_OR_ADD"


def test_bodies_that_are_streamed_come_back_in_pieces() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes()
    data = framed(
        wire.request_of("generate", {"PROMPT": "x", "JOB_ID": "j"}) + wire.field(7, noise)
    )
    halves = body(data[:70_000], last=False), body(data[70_000:])
    _, answers = run(head(GRPC, duplex=True), *halves)
    assert DESTINATION.encode() in answers[0]
    assert len(answers) == 1 + -(-len(data) // 60_000)
    assert max(map(len, answers)) < 65_536
    assert sum(map(len, answers[1:])) > len(data)
    assert [b"\x10\x01" in answer[-4:] for answer in answers[1:]] == [False, False, False, True]


@pytest.mark.parametrize(
    ("headers", "data", "expected"),
    [
        ({":path": "/v2/models/generate/infer"}, b"[[[", A.http),
        ({":path": "/v2/models/generate/generate"}, b'[{"PROMPT": "x"}]', A.http),
        ({":path": "/v2/models/generate/generate"}, b"[" * 10**6, A.http),
        ({":path": "/v2"}, b"", A.http),
        (GRPC, b"\0\0\0\0\x02\xff\xff", A.grpc),
        (GRPC, b"\1\0\0\0\x02xx", A.grpc),
        (GRPC | {":path": "/inference.GRPCInferenceService/ServerLive"}, framed(b""), A.grpc),
    ],
    ids=[
        "no JSON",
        "a list of values",
        "nested",
        "metadata",
        "no message",
        "compressed",
        "another method",
    ],
)
def test_what_cannot_be_read_goes_to_a_worker_as_it_is(
    headers: dict[str, str], data: bytes, expected: str
) -> None:
    pool, answers = run(head(headers), body(data))
    assert expected.encode() in answers[1]
    assert b"," not in answers[1]
    assert not pool.book.choices


def test_json_gets_a_job_id_and_its_length_is_told() -> None:
    content = (
        b'{"inputs": [{"name": "PROMPT", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]}]}'
    )
    headers = {":path": "/v2/models/generate/infer", "content-length": str(len(content))}
    pool, answers = run(head(headers), body(content))
    ((peek, _),) = pool.book.choices
    assert f'"data": ["{peek.job}"]'.encode() in answers[1]
    assert b"content-length" in answers[1]


def test_values_get_a_worker_and_a_job_id() -> None:
    """Of the generate extension, with or without an id of the caller's."""
    path = {":path": "/v2/models/generate/generate", "content-length": "9"}
    controls = '[{"name": "edges"}]'
    for given in ({}, {"JOB_ID": "mine"}):
        content = msgspec.json.encode({"PROMPT": "x", "CONTROLS": controls} | given)
        pool, answers = run(head(path), body(content))
        ((peek, choice),) = pool.book.choices
        assert choice.worker == B.grpc
        assert f"{B.http},{A.http}".encode() in answers[1]
        assert (f'"JOB_ID": "{peek.job}"'.encode() in answers[1]) == (not given)
        assert peek.job == given.get("JOB_ID", peek.job)
        assert (b"content-length" in answers[1]) == (not given)


@pytest.mark.parametrize("over_grpc", [True, False])
def test_an_id_that_no_worker_accepts_gets_no_other_beside_it(over_grpc: bool) -> None:
    texts = {"PROMPT": "x", "JOB_ID": "j" * 65}
    headers, content = GRPC, framed(wire.request_of("generate", texts))
    if not over_grpc:
        headers = {":path": "/v2/models/generate/infer"}
        given = [
            {"name": n, "datatype": "BYTES", "shape": [1, 1], "data": [t]} for n, t in texts.items()
        ]
        content = msgspec.json.encode({"inputs": given})
    pool, answers = run(head(headers), body(content))
    ((peek, _),) = pool.book.choices
    assert peek.job == ""
    assert b"JOB_ID" not in answers[1], "the body goes on as it is"


@pytest.mark.parametrize(
    ("headers", "said"), [(GRPC, b"\x08\x0e"), ({":path": "/v2"}, b'{"error"')]
)
def test_without_workers_the_caller_is_told_so(headers: dict[str, str], said: bytes) -> None:
    _, answers = run(head(headers, last=True), workers=False)
    (answer,) = answers
    assert b"no worker of the fleet is ready" in answer
    assert said in answer


def test_a_name_stands_for_its_addresses() -> None:
    found = asyncio.run(resolved((Server("localhost:81", "localhost:80"),), {}))
    assert found == [Server("127.0.0.1:81", "127.0.0.1:80")]


def test_a_name_that_is_not_resolved_keeps_its_addresses() -> None:
    """One answer of DNS that is missing must not take the workers away."""
    unknown = Server("no.such.invalid:81", "no.such.invalid:80")
    assert asyncio.run(resolved((unknown,), {})) == []
    local, before = Server("localhost:81", "localhost:80"), {unknown: [A, B]}
    found = asyncio.run(resolved((unknown, local), before))
    assert found == [A, B, Server("127.0.0.1:81", "127.0.0.1:80")]

"""What a fleet's gRPC service refuses, and the priority that it gives, before fake workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from tessera_gateway.fleet import wire
from tessera_gateway.fleet.given import with_integers
from tessera_gateway.keys import make_key
from tests.samples.fronts import fleet

STEPS = wire.field(1, b"STEPS") + wire.field(2, b"INT32") + wire.field(3, b"\1\1")


def draw(job: str = "") -> bytes:
    return wire.request_of("generate", {"PROMPT": "x"} | ({"JOB_ID": job} if job else {}))


def tensor(name: str, shape: tuple[int, ...], data: bytes, datatype: str) -> bytes:
    return wire.with_tensor(draw("j"), wire.Tensor(name, shape, data), datatype)


def text(length: int) -> bytes:
    return length.to_bytes(4, "little") + bytes(length)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            wire.request_of("generate", {"PROMPT": "x" * 65_537}),
            "size of .* is 65541; accepted: 4 to",
        ),
        (wire.request_of("generate", {"PROMT": "x"}), r"inputs\[0\].name is 'PROMT'; accepted"),
        (draw("j") + draw("j"), "names PROMPT again; accepted: each name once"),
        (tensor("STEPS", (1, 1), b"1234", "INT64"), "datatype is 'INT64'; accepted: INT32 for"),
        (tensor("STEPS", (1, 1), b"123", "INT32"), "size of .* is 3; accepted: 4 bytes, as the"),
        (tensor("STEPS", (1, 2**40), b"", "INT32"), r"inputs\[2\].shape is \[1, 1099511627776\]"),
        (tensor("LORAS", (2, 1), 2 * text(1), "BYTES"), r"shape is \[2, 1\]; accepted: \[1, 1\]"),
        (tensor("LORAS", (1, 1), b"\5\0\0\0x", "BYTES"), "says that its text has 5 bytes"),
        (tensor("LORAS", (1, 1), b"\1\0\0\0\xff", "BYTES"), "is not UTF-8"),
        (draw("j") + wire.field(5, STEPS), "STEPS.* has no data"),
        (with_integers(draw("j"), {f"a{n}": n for n in range(33)}), "33 keys; accepted: at most"),
        (with_integers(draw("j"), {"triton_a": 1}), "belongs to Triton itself"),
        (
            draw("j")
            + wire.field(
                6, wire.field(1, b"INFO") + wire.field(2, wire.field(1, b"classification"))
            ),
            "outputs ask for a classification; accepted",
        ),
    ],
    ids=[
        *("long text", "unknown", "twice", "type", "size", "huge shape", "batch", "length"),
        *("no UTF-8", "no data", "parameters", "Triton's parameter", "classification"),
    ],
)
def test_what_would_be_refused_over_http(request_: bytes, sentence: str) -> None:
    async def run() -> None:
        async with fleet() as it:
            with pytest.raises(grpc.aio.AioRpcError, match=sentence) as caught:
                await it.call(request_)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert not it.workers[0].drawn

    asyncio.run(run())


@pytest.mark.parametrize(("kind", "accepted"), [(1, True), (2, False)], ids=["flag", "number"])
def test_what_every_client_sends_is_accepted(kind: int, accepted: bool) -> None:
    """As perf_analyzer does."""
    name, value = b"triton_enable_empty_final_response", bytes([kind << 3, 1])
    parameter = wire.field(4, wire.field(1, name) + wire.field(2, value))

    async def run() -> None:
        async with fleet() as it:
            if accepted:
                await it.call(draw("j") + parameter)
                return
            with pytest.raises(grpc.aio.AioRpcError, match="belongs to Triton itself"):
                await it.call(draw("j") + parameter)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("asked", "key", "given"),
    [
        ({"priority": 1, "job_priority": 1}, 3, 3),
        ({"job_priority": 1}, 3, 3),
        ({}, 2, 2),
        ({"priority": 3, "job_priority": 1}, 2, 3),
        ({"priority": 2}, None, 2),
        ({"priority": 9}, None, 3),
        ({}, None, None),
    ],
)
def test_no_priority_is_above_the_keys(
    asked: dict[str, int], key: int | None, given: int | None, tmp_path: Path
) -> None:
    token, lines = make_key("me")
    keys = tmp_path / "keys.toml"
    keys.write_text(f"{lines}priority = {key}\n")

    async def run() -> None:
        async with fleet(keys if key else None) as it:
            mine = (("authorization", f"Bearer {token}"),)
            await it.call(with_integers(draw(), asked), metadata=mine)
            expected = {} if given is None else {"priority": given, "job_priority": given}
            assert it.workers[0].given == [expected]

    asyncio.run(run())

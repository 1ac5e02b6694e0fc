"""Addresses, and how errors of the wire become ours."""

from __future__ import annotations

import pytest

from tessera.errors import (
    Cancelled,
    InternalError,
    InvalidInput,
    TesseraError,
    TimedOut,
    Unavailable,
    UnknownJob,
)
from tessera_client.address import split_url
from tessera_client.wire import ErrorAnswer, received


def triton_error(message: str, status: str) -> ErrorAnswer:
    return ErrorAnswer(message, status)


STEPS = "STEPS is 0; accepted: 1"
JOB = "JOB_ID is 'x'; accepted: y"
LATE = "no answer from host:1 within 9 s"
RESTARTING = (
    "a model is being restarted; try again in a few seconds (Stub process 'x' is not healthy.)"
)


EXPIRED = "Request timeout expired"
QUEUED = "the request waited in a queue of the server for longer than its timeout"
REFUSED = "no server answers at host:1: refused"


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (triton_error(f"in ensemble 'generate', {STEPS}", "400"), InvalidInput, STEPS),
        (triton_error(STEPS, "INVALID_ARGUMENT"), InvalidInput, STEPS),
        (triton_error(JOB, "404"), UnknownJob, JOB),
        (triton_error("job x was cancelled", "400"), Cancelled, "job x was cancelled"),
        (triton_error("cancelled", "CANCELLED"), Cancelled, "cancelled"),
        (triton_error("try again", "503"), Unavailable, "try again"),
        (triton_error("in ensemble 'generate', " + EXPIRED, "503"), TimedOut, QUEUED),
        (triton_error(EXPIRED, "UNAVAILABLE"), TimedOut, QUEUED),
        (triton_error("internal error ab", "500"), InternalError, "internal error ab"),
        (triton_error("Stub process 'x' is not healthy.", "500"), Unavailable, RESTARTING),
        (triton_error("Deadline Exceeded", "DEADLINE_EXCEEDED"), TimedOut, LATE),
        (TimeoutError("timed out"), TimedOut, LATE),
        (ConnectionRefusedError("refused"), Unavailable, REFUSED),
        (KeyError("odd"), InternalError, "talking to host:1 failed: KeyError: 'odd'"),
    ],
    ids=lambda v: None if isinstance(v, str) else getattr(v, "__name__", str(v)),
)
def test_errors_of_the_wire_become_ours(
    error: Exception, kind: type[TesseraError], sentence: str
) -> None:
    ours = received(error, "host:1", 9.0)
    assert type(ours) is kind
    assert str(ours) == sentence


def test_only_a_refused_connection_is_known_to_be_without_effect() -> None:
    refused = received(ConnectionRefusedError("refused"), "h:1", 1)
    reset = received(ConnectionResetError("reset"), "h:1", 1)
    assert isinstance(refused, Unavailable)
    assert isinstance(reset, Unavailable)
    assert refused.undone
    assert not reset.undone


def test_invalid_input_keeps_its_parts_on_the_way() -> None:
    sent = InvalidInput("STEPS", 0, "an integer from 1 to 1000")
    back = InvalidInput.received(str(sent))
    assert (back.field, back.value, back.accepted) == ("STEPS", "0", "an integer from 1 to 1000")
    assert str(back) == str(sent)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://host", ("http", "host:8000", "")),
        ("grpc://host", ("grpc", "host:8001", "")),
        ("http://host:1234/", ("http", "host:1234", "")),
        ("grpc://[::1]:9", ("grpc", "[::1]:9", "")),
        ("https://host", ("https", "host:443", "")),
        ("grpcs://host", ("grpcs", "host:443", "")),
        ("https://host/a/b/", ("https", "host:443", "/a/b")),
    ],
)
def test_urls(url: str, parts: tuple[str, str, str]) -> None:
    assert split_url(url) == parts


@pytest.mark.parametrize(
    "url",
    ["host:8000", "ftp://host", "http://", "http://host:x", "http://host?a=1", "grpc://host/a"],
)
def test_bad_urls_are_named(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"accepted: http\[s\]://host\[:port\]"):
        split_url(url)

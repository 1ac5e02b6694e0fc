"""Requests that end tritonserver, or bind it for minutes, when it gets them itself."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from bench.server import Server
from tessera_gateway.kserve.limits import LIMITS
from tests.samples.gateways import RunningGateway
from tests.samples.raw_http import Answer, send, send_chunks

INFER = "/v2/models/generate/infer"
PROMPT = {"name": "PROMPT", "datatype": "BYTES", "shape": [1, 1], "data": ["a red circle"]}
STEPS = {"name": "STEPS", "datatype": "INT32", "shape": [1, 1], "data": [1]}
DRAWN: dict[str, Any] = {"inputs": [PROMPT, STEPS]}
HUGE = {"inputs": [{**PROMPT, "shape": [1, 2**40]}]}
CLASSIFIED = {**DRAWN, "outputs": [{"name": "INFO", "parameters": {"classification": 1}}]}
NESTED = b'{"inputs":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
BAD: dict[str, tuple[bytes, str]] = {
    "a huge shape": (json.dumps(HUGE).encode(), "inputs[0].shape is [1, 1099511627776]"),
    "200,000 brackets": (NESTED, "inputs[0] has a wrong value"),
    "200,000 brackets in a field of no meaning": (
        NESTED.replace(b"inputs", b"others"),
        "the JSON is nested too deeply",
    ),
    "a classification of BYTES": (
        json.dumps(CLASSIFIED).encode(),
        "outputs[0].parameters have the key 'classification'; accepted: binary_data",
    ),
    "60,000 parameters": (
        json.dumps({**DRAWN, "parameters": {f"p{n}": "x" for n in range(60_000)}}).encode(),
        "parameters has",
    ),
}


@pytest.fixture(autouse=True)
def _alive(server: Server) -> Iterator[None]:
    """The server is the same process, and draws, after each of them."""
    process = server.process.pid
    yield
    assert server.process.poll() is None
    assert server.process.pid == process
    drawn = send(server.http, "POST", INFER, json.dumps(DRAWN).encode())
    assert drawn.status == 200
    assert "signal" not in server.log.read_text()


@pytest.mark.parametrize(("body", "sentence"), BAD.values(), ids=BAD.keys())
def test_it_is_refused(kserve: RunningGateway, body: bytes, sentence: str) -> None:
    answer = send(kserve.url, "POST", INFER, body)
    assert answer.status == 400
    assert sentence in answer.error


@pytest.mark.parametrize("path", ["generate", "jobs"])
def test_brackets_for_the_generate_extension(kserve: RunningGateway, path: str) -> None:
    body = b'{"PROMPT":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    answer = send(kserve.url, "POST", f"/v2/models/{path}/generate", body)
    assert (answer.status, "nested too deeply" in answer.error) == (400, True)


def test_600_000_chunks_are_one_body_for_triton(kserve: RunningGateway) -> None:
    body = json.dumps(DRAWN).encode()
    spread = [body[n : n + 1] for n in range(len(body))] + [b" "] * (600_000 - len(body))
    with watched(kserve) as longest:
        answer = send_chunks(kserve.url, INFER, spread)
    assert answer.status == 200, answer.body[:300]
    assert longest() < 2


@pytest.mark.parametrize(
    "path",
    ["/v2/systemsharedmemory/region/x/register", "/v2/logging", "/v2/trace/setting"],
    ids=["shared memory", "logging", "trace"],
)
def test_600_000_chunks_elsewhere(kserve: RunningGateway, path: str) -> None:
    assert send_chunks(kserve.url, path, [b"1"] * 600_000).status == 404


def test_many_parameters_do_not_keep_others_waiting(kserve: RunningGateway) -> None:
    body = json.dumps({**DRAWN, "parameters": {f"parameter-{n}": n for n in range(40_000)}})
    assert len(body) > 1_000_000
    with watched(kserve) as longest, concurrent.futures.ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(send, kserve.url, "POST", INFER, body.encode()) for _ in range(16)]
        assert {each.result().status for each in asked} == {400}
    assert longest() < 2


def used(process: psutil.Process) -> float:
    """Seconds of processor time that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def watched(gateway: RunningGateway) -> Iterator[Any]:
    """Asks for the server's health meanwhile; gives the longest wait for it, in seconds of the
    gateway's processor time: the rest of a wait says how busy the machine is.
    """
    waits, over, process = [0.0], threading.Event(), psutil.Process(gateway.process.pid)

    def ask() -> None:
        while True:
            start = used(process)
            assert send(gateway.url, "GET", "/v2/health/live").status == 200
            waits.append(used(process) - start)
            if over.wait(0.05):
                return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield lambda: max(waits)
    finally:
        over.set()
        thread.join()
    assert len(waits) > 1


BINARY = {**PROMPT, "parameters": {"binary_data_size": 8}}
del BINARY["data"]


def framed(content: Any, rest: bytes, **headers: str) -> dict[str, Any]:
    """Body and headers of a request with binary tensors."""
    head = json.dumps(content).encode()
    return {
        "body": head + rest,
        "headers": {"Inference-Header-Content-Length": str(len(head)), **headers},
    }


WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "compressed": (
        {"body": gzip.compress(b"{}"), "headers": {"Content-Encoding": "gzip"}},
        415,
        "Content-Encoding is 'gzip'; accepted: a body that is not compressed",
    ),
    "too short": (
        framed({"inputs": [BINARY]}, b"\3\0\0\0abc"),
        400,
        "the body has 7 bytes of binary tensors; accepted: 8, as the head says",
    ),
    "too long": (framed({"inputs": [BINARY]}, b"\4\0\0\0abcde"), 400, "the body has 9 bytes"),
    "a text's own length": (
        framed({"inputs": [BINARY]}, b"\xff\xff\xff\x7fabcd"),
        400,
        "inputs[0] (PROMPT) says that its text has 2147483647 bytes; accepted: 4",
    ),
    "no UTF-8": (framed({"inputs": [BINARY]}, b"\4\0\0\0\xff\xff\xff\xff"), 400, "is not UTF-8"),
    "a head beyond the body": (
        {"body": b"{}", "headers": {"Inference-Header-Content-Length": "50"}},
        400,
        "the body ends 48 bytes too early",
    ),
    "a head of no length": (
        {"body": b"{}", "headers": {"Inference-Header-Content-Length": "-1"}},
        400,
        "Inference-Header-Content-Length is '-1'; accepted: a number of bytes",
    ),
    "a head too long": (
        {"body": b"{}", "headers": {"Inference-Header-Content-Length": "99999999"}},
        400,
        "Inference-Header-Content-Length is 99999999; accepted: 1 to 65536 bytes",
    ),
    "nothing": ({"body": b""}, 400, "the JSON cannot be read"),
    "a size without a head": (
        {"body": json.dumps({"inputs": [BINARY]}).encode()},
        400,
        "the body has 0 bytes of binary tensors; accepted: 8",
    ),
    "a body too large": (
        {"body": b"x", "headers": {"Content-Length": "999999999999"}},
        413,
        "the body has 999999999999 bytes; accepted: at most",
    ),
}


@pytest.mark.parametrize(("parts", "status", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_bodies_that_are_not_as_their_head_says(
    kserve: RunningGateway, parts: dict[str, Any], status: int, sentence: str
) -> None:
    answer = send(kserve.url, "POST", INFER, **parts)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert sentence in answer.error


def test_a_chunked_body_that_ends_early_or_late(kserve: RunningGateway) -> None:
    head = json.dumps({"inputs": [BINARY]}).encode()
    for rest, sentence in ((b"\4\0\0\0abc", "1 bytes too early"), (b"\4\0\0\0abcd!", "more bytes")):
        answer = send_chunks(
            kserve.url, INFER, [head, rest], {"Inference-Header-Content-Length": str(len(head))}
        )
        assert answer.status == 400
        assert sentence in answer.error


def chunks_of_a_gigabyte() -> Iterator[bytes]:
    piece = bytes(2**20)
    return (piece for _ in range(2**10))


def bombs() -> dict[str, Callable[[str], Answer]]:
    """Requests that would take much memory, by name."""
    edit, size = "/v2/models/edit/infer", LIMITS.json - 1000
    shape = [1, size // 2, 1, 1]
    picture = {"name": "IMAGE", "datatype": "UINT8", "shape": shape, "data": "@"}
    numbers = json.dumps({"inputs": [picture]}).encode().replace(b'"@"', b"[" + b"1," * (size // 2))
    texts = {"name": "REGION_PROMPTS", "datatype": "BYTES", "shape": [1, 2], "data": "@"}
    lists = b"[" + b"[]," * (size // 4) + b"[]]"
    return {
        "a gigabyte in chunks": lambda url: send_chunks(url, edit, chunks_of_a_gigabyte()),
        "objects": lambda url: send(url, "POST", edit, b'{"inputs":[' + b"{}," * (size // 3)),
        "lists": lambda url: send(url, "POST", edit, b'{"inputs":[' + b"[]," * (size // 3)),
        "numbers": lambda url: send(url, "POST", edit, numbers),
        "texts": lambda url: send(
            url, "POST", edit, json.dumps({"inputs": [texts]}).encode().replace(b'"@"', lists)
        ),
        "parameters": lambda url: send(
            url, "POST", edit, b'{"parameters":{' + b'"a":1,' * (size // 6) + b'"b":1},"inputs":[]}'
        ),
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_take_a_second_and_100_mb_at_most(kserve: RunningGateway, name: str) -> None:
    process = psutil.Process(kserve.process.pid)
    before, peak, over = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    began = used(process)
    status = bombs()[name](kserve.url).status
    took = used(process) - began
    over.set()
    thread.join()
    assert status in (400, 413)
    assert took < 1
    assert peak[0] - before < 100e6

"""The client's HTTP connections, with a server that answers as Triton does."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from tessera.errors import InternalError, TimedOut, Unavailable, UnknownJob
from tessera_client import Client
from tessera_client.address import address_of
from tessera_client.transport import HttpTransport
from tessera_client.wire import Call
from tests.fakes.transport import INFO, STATUS
from tests.samples.waiting import PATIENCE_S

PING = Call("ping", {"A": np.array([[7]], np.int32)})


class _Triton(BaseHTTPRequestHandler):
    """Answers `generate` and `jobs`, any other model with the number of inputs."""

    protocol_version = "HTTP/1.1"
    peers: set[Any]
    waits: threading.Event
    port: int
    failure: tuple[int, bytes] | None = None
    breaks_off = False

    def do_GET(self) -> None:
        self._send(200 if self.path == "/v2/health/ready" else 400, b"")

    def do_POST(self) -> None:
        self.peers.add(self.client_address)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body[: int(self.headers["Inference-Header-Content-Length"])])
        model = self.path.split("/")[3]
        if model == "slow":
            self.waits.wait(PATIENCE_S)
        if self.failure:
            return self._send(*self.failure)
        text = {"jobs": json.dumps(STATUS), "generate": json.dumps(INFO)}
        outputs = [_text("INFO" if model == "generate" else "RESULT", text.get(model, "{}"))]
        if model == "generate":
            image = {"name": "IMAGE", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}
            outputs.append(image)
        assert asked["inputs"]
        return self._send(200, json.dumps({"model_name": model, "outputs": outputs}).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + 9 * self.breaks_off))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.breaks_off

    def log_message(self, format: str, *args: object) -> None:
        pass


def _text(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [text]}


@pytest.fixture
def triton() -> Iterator[type[_Triton]]:
    handler: Any = type("Handler", (_Triton,), {"peers": set(), "waits": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.port = server.server_port
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler
        handler.waits.set()
        server.shutdown()


@pytest.fixture
def transport(triton: Any) -> Iterator[HttpTransport]:
    opened = HttpTransport(address_of(f"http://127.0.0.1:{triton.port}"))
    yield opened
    opened.close()


def test_pictures_with_progress_leave_no_connection_and_no_file_open(triton: Any) -> None:
    def picture(number: int) -> None:
        result = client.generate("a", timeout=PATIENCE_S + number, on_progress=lambda status: None)
        assert np.asarray(result.image).tolist() == [[[1, 2, 3]]]

    with Client(f"http://127.0.0.1:{triton.port}") as client:
        picture(0)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(20):
            thread = threading.Thread(target=picture, args=(number,), daemon=True)
            thread.start()
            thread.join(PATIENCE_S)
        assert len(os.listdir("/proc/self/fd")) <= before + 4  # both ends of up to two more
        assert len(triton.peers) <= 3


def test_calls_at_a_time_have_a_connection_each(triton: Any, transport: HttpTransport) -> None:
    with ThreadPoolExecutor(3) as pool:
        slow = Call("slow", PING.inputs)
        answers = [pool.submit(transport.infer, slow, PATIENCE_S) for _ in range(3)]
        while len(triton.peers) < 3 and not any(a.done() for a in answers):
            time.sleep(0.01)
        triton.waits.set()
        assert [answer.result(PATIENCE_S)["RESULT"].item() for answer in answers] == [b"{}"] * 3
    transport.infer(PING, PATIENCE_S)
    assert len(triton.peers) == 3


def test_the_timeout_is_that_of_the_call(triton: Any, transport: HttpTransport) -> None:
    transport.infer(PING, PATIENCE_S)
    with pytest.raises(TimedOut, match=r"within 0\.1 s"):
        transport.infer(Call("slow", PING.inputs), 0.1)
    triton.waits.set()
    transport.infer(Call("slow", PING.inputs), PATIENCE_S)
    assert len(triton.peers) == 2, "one that may still be answered was used again"


def test_a_connection_that_the_server_has_closed_is_not_used_again(
    triton: Any, transport: HttpTransport
) -> None:
    transport.infer(PING, PATIENCE_S)
    (connection,) = transport._idle
    connection.sock.shutdown(socket.SHUT_WR)
    assert connection.sock.recv(1, socket.MSG_PEEK) == b""  # the server has ended it, too
    transport.infer(PING, PATIENCE_S)
    assert len(triton.peers) == 2


@pytest.mark.parametrize(
    ("failure", "kind", "sentence"),
    [
        ((404, b'{"error": "no job j"}'), UnknownJob, "no job j"),
        ((500, b"<html>"), InternalError, "<html>"),
        ((502, b""), InternalError, "no reason was given"),
    ],
    ids=["Triton's", "another's", "empty"],
)
def test_answers_that_are_errors(
    triton: Any, transport: HttpTransport, failure: Any, kind: type[Exception], sentence: str
) -> None:
    triton.failure = failure
    with pytest.raises(kind, match=sentence):
        transport.infer(PING, PATIENCE_S)


def test_an_answer_that_breaks_off(triton: Any, transport: HttpTransport) -> None:
    triton.breaks_off = True
    with pytest.raises(Unavailable, match="no server answers") as caught:
        transport.infer(PING, PATIENCE_S)
    assert not caught.value.undone


def test_no_server_had_no_effect() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        transport = HttpTransport(address_of(f"http://127.0.0.1:{taken.getsockname()[1]}"))
        with pytest.raises(Unavailable) as caught:
            transport.infer(PING, PATIENCE_S)
        assert not transport.ready()
    assert caught.value.undone


def test_readiness_of_the_server_and_of_a_model(transport: HttpTransport) -> None:
    assert (transport.ready(), transport.ready("generate")) == (True, False)

"""Answers of a tritonserver that ends meanwhile, or answers what nobody can read."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tessera.errors import TesseraError
from tessera.serve.repository import Repository
from tessera.serve.versions import UnsupportedServer, running_version
from tessera.serve.warmup import warm_up

BROKEN = {
    "cut off": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[",
    "no HTTP": b"nonsense\r\n\r\n",
    "nothing": b"",
    "half a line": b"HTTP/1.1",
    "an error that is cut off": b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\n{",
}
WHOLE = {
    "no JSON": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[{",
    "another JSON": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n[12]",
}
ALL = {**BROKEN, **WHOLE}


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """The address of one that answers everything so."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


@pytest.mark.parametrize("answer", ALL.values(), ids=ALL.keys())
def test_the_state_of_a_model_is_not_known(answer: bytes) -> None:
    with server(answer) as url:
        assert Repository(url).state("denoise") is None


@pytest.mark.parametrize("answer", ALL.values(), ids=ALL.keys())
def test_only_a_whole_answer_says_that_a_model_is_loaded(answer: bytes) -> None:
    with server(answer) as url:
        assert Repository(url).load("denoise") is (answer in WHOLE.values())


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
def test_a_server_without_a_version_or_a_first_picture_is_refused(answer: bytes) -> None:
    with server(answer) as url:
        with pytest.raises(UnsupportedServer, match="does not tell its version"):
            running_version(url)
        with pytest.raises(TesseraError, match="the first picture failed"):
            warm_up(url, 64, "word")


@pytest.mark.parametrize(
    ("answer", "answers"),
    [(BROKEN["nothing"], False), (WHOLE["no JSON"], True), (b"HTTP/1.1 403 No\r\n\r\n", True)],
    ids=["nothing", "200", "403"],
)
def test_any_status_is_an_answer(answer: bytes, *, answers: bool) -> None:
    with server(answer) as url:
        assert Repository(url).answers(30.0) is answers
    assert not Repository(url).answers(30.0), "it has ended"


def test_a_server_that_says_nothing_does_not_answer() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:
        url = f"http://127.0.0.1:{silent.server_address[1]}"
        assert not Repository(url).answers(0.2)

"""The parts of tessera-serve that need no server: the command line, finding tritonserver, the first
pictures.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tessera.errors import TesseraError, Unavailable
from tessera.serve import run_folder as module
from tessera.serve import supervisor as supervisor_module
from tessera.serve import tritonserver, warmup
from tessera.serve.cli import check_lora_path
from tessera.serve.repository import Repository
from tessera.serve.run_folder import run_folder, shared_memory
from tessera.serve.supervisor import Supervisor
from tessera.serve.tritonserver import (
    NoServer,
    Ports,
    TritonServer,
    command,
    environment,
    find_server,
    model_repository,
    url_of,
)
from tessera.serve.warmup import warm_up
from tessera.shared.processes import namespace
from tessera.shared.settings import LoraPath
from tessera.shared.signing import FIRST
from tests.samples.requests import MANIFEST
from tests.samples.waiting import PATIENCE_S, comes

SLOTS = 3


def test_the_command_line_has_what_was_asked_for() -> None:
    server = TritonServer(Path("/bin/server"), Path("/backends"), {})
    folders, ports = [Path("/a"), Path("/b")], Ports(1, 2, 3)
    line = command(server, folders, ports, load=["m"], host="::1", extra=["--x=1"])
    assert "--load-model=m" in line
    assert line[0] == "/bin/server"
    assert {"--model-repository=/a", "--model-repository=/b", "--http-port=1"} <= set(line)
    assert {"--grpc-port=2", "--metrics-port=3", "--http-address=::1"} <= set(line)
    assert {"--model-control-mode=explicit", "--backend-directory=/backends"} <= set(line)
    assert line[-1] == "--x=1"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("10.0.0.5", "http://10.0.0.5:1"),
        ("::", "http://[::1]:1"),
        ("fe80::1", "http://[fe80::1]:1"),
    ],
)
def test_a_server_is_asked_at_the_address_that_it_listens_on(host: str, url: str) -> None:
    assert url_of(host, 1) == url


def test_a_run_leaves_nothing_and_removes_what_dead_ones_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARED", tmp_path)
    with run_folder() as own:
        (flag,) = shared_memory(own)
        prefix = flag.rpartition("=")[2]
        process, started = own.name.split("-")[3:5]
        dead = own.with_name(own.name.replace(started, "12"))
        dead.mkdir()
        strays = [f"tessera-run-{namespace()}-{end}" for end in ("x", "1", "1-2")]
        (dead / "board").touch()
        for name in (f"{prefix}region", f"{dead.name}-region", "another's", *strays):
            (tmp_path / name).touch()
        assert process == str(os.getpid())
        with run_folder():
            assert not dead.exists()
            assert (tmp_path / f"{prefix}region").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another's", *sorted(strays)]


def test_the_environment_lets_model_processes_find_this_python() -> None:
    server = TritonServer(Path("/bin/server"), None, {"LD_LIBRARY_PATH": "/lib"})
    variables = environment(server, TESSERA_BUNDLE="/bundle")
    assert (variables["LD_LIBRARY_PATH"], variables["TESSERA_BUNDLE"]) == ("/lib", "/bundle")
    assert "python" in {p.name for p in Path(variables["PATH"].split(":")[0]).iterdir()}


def test_an_installed_server_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/{name}")
    assert find_server(tmp_path) == TritonServer(Path("/opt/tritonserver"), None, {})


def test_without_any_server_the_ways_to_one_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(tritonserver, "_CONTAINER", tmp_path / "none")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoServer, match=r"pip install nvidia-pytriton"):
        find_server(tmp_path)


def test_the_model_repository_is_found() -> None:
    assert (model_repository() / "generate" / "config.pbtxt").exists()


def test_a_side_path_needs_its_graphs() -> None:
    limits = dataclasses.replace(MANIFEST.limits, lora_rank=0)
    sentence = "bundle .* has no graphs for it; build it with --lora-rank above 0"
    with pytest.raises(TesseraError, match=sentence):
        check_lora_path(LoraPath.SIDE, dataclasses.replace(MANIFEST, limits=limits))


class _Triton(BaseHTTPRequestHandler):
    """Answers as tritonserver does; `answer` is (status, body) of every inference."""

    answer = (200, b"{}")
    slow: tuple[str, threading.Event] | None = None
    """A path, and what is set when it is to be answered."""
    bodies: list[dict[str, object]]
    paths: list[str]
    keys: list[str | None]

    def do_GET(self) -> None:
        self._send(200, json.dumps({"instance_group": [{"count": SLOTS}]}).encode())

    def do_POST(self) -> None:
        self.paths.append(self.path)
        self.keys.append(self.headers["key"])
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.slow and self.path == self.slow[0]:
            self.slow[1].wait(PATIENCE_S)
        self._send(*self.answer)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def triton() -> Iterator[tuple[int, type[_Triton]]]:
    handler = type("Handler", (_Triton,), {"bodies": [], "paths": [], "keys": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, handler
        server.shutdown()


def test_every_slot_makes_first_pictures(triton: tuple[int, type[_Triton]]) -> None:
    port, handler = triton
    warm_up(f"http://127.0.0.1:{port}", 64, "word")
    assert len(handler.bodies) == 2 * SLOTS
    inputs = {i["name"]: i["data"] for i in handler.bodies[0]["inputs"]}  # type: ignore[attr-defined]
    assert inputs["WIDTH"] == inputs["HEIGHT"] == [64]
    first = {"priority": 1, "job_priority": 1}
    assert handler.bodies[0]["parameters"] == {FIRST: "word", **first}, "behind no caller"


def test_a_server_that_cannot_make_a_picture_says_so(triton: tuple[int, type[_Triton]]) -> None:
    port, handler = triton
    handler.answer = (500, b'{"error": "out of paint"}')
    with pytest.raises(TesseraError, match=r"the first picture failed: .*out of paint"):
        warm_up(f"http://127.0.0.1:{port}", 64, "word")


@pytest.mark.parametrize("why", ["the queue is full: 1 jobs wait", "requests under way hold 9 GB"])
def test_first_pictures_wait_for_room(triton: tuple[int, type[_Triton]], why: str) -> None:
    """With a small --max-queue there is less than they need; and a server that has been started
    again may have callers before them.
    """
    port, handler = triton
    full = (503, f'{{"error": "in ensemble \'generate\', {why}"}}'.encode())
    answers = iter([full] * SLOTS)
    handler.answer = property(lambda self: next(answers, (200, b"{}")))  # type: ignore[assignment]
    warm_up(f"http://127.0.0.1:{port}", 64, "word")
    assert len(handler.bodies) == 3 * SLOTS


def test_first_pictures_that_come_late_are_told_apart(
    triton: tuple[int, type[_Triton]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy server is no broken one."""
    port, handler = triton
    handler.slow = ("/v2/models/generate/infer", threading.Event())
    monkeypatch.setattr(warmup, "_TIMEOUT_S", 0.2)
    with pytest.raises(Unavailable, match="the first picture failed: timed out"):
        warm_up(f"http://127.0.0.1:{port}", 64, "word")
    handler.slow[1].set()


def test_no_server_at_all_is_one_sentence() -> None:
    with pytest.raises(TesseraError, match="the first picture failed"):
        warm_up("http://127.0.0.1:1", 64, "word")


def repository(port: int) -> Repository:
    return Repository(f"http://127.0.0.1:{port}", {"key": "secret"})


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.now


def test_a_model_that_cannot_be_loaded_again_is_tried_again(
    triton: tuple[int, type[_Triton]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, handler = triton
    said: list[str] = []
    clock = Clock()
    monkeypatch.setattr(supervisor_module, "time", clock)
    with subprocess.Popen(["sleep", "600"]) as process:
        supervisor = Supervisor([], {}, repository(port), said.append)
        supervisor._process = process
        handler.answer = (500, b"")
        supervisor._heal("denoise")
        _load_until(supervisor, lambda: len(said) == 2)
        supervisor._workers["denoise"].join(PATIENCE_S)
        supervisor._load_due()  # not yet
        assert not supervisor._at_work("denoise")
        assert handler.paths == [
            "/v2/repository/models/denoise/unload",
            "/v2/repository/models/denoise/load",
        ]
        handler.answer = (200, b"")
        clock.now += 1.0
        _load_until(supervisor, lambda: len(said) == 3)
        process.kill()
    assert handler.paths[2:] == handler.paths[1:2]
    assert set(handler.keys) == {"secret"}
    assert "could not be loaded again, see tritonserver's log; once more in 1 s" in said[1]
    assert "model denoise is back after" in said[2]


def _load_until(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    def held() -> bool:
        if not condition():
            supervisor._load_due()
        return condition()

    comes(held)


@pytest.mark.parametrize("verb", ["unload", "load"])
def test_a_model_that_takes_long_to_reload_holds_up_no_other(
    triton: tuple[int, type[_Triton]], verb: str
) -> None:
    port, handler = triton
    path, answer = f"/v2/repository/models/controlnet_large/{verb}", threading.Event()
    handler.slow = (path, answer)
    said: list[str] = []
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    supervisor = Supervisor([], {}, repository(port), said.append)
    supervisor._process = process
    supervisor._heal("controlnet_large")
    _load_until(supervisor, lambda: path in handler.paths)
    worker = supervisor._workers["controlnet_large"]
    supervisor._heal("denoise")
    _load_until(supervisor, lambda: "model denoise is back" in said[-1])
    assert supervisor._workers["controlnet_large"] is worker, "a model is loaded once at a time"
    answer.set()
    supervisor.stop()
    assert not worker.is_alive()
    supervisor._load_due()  # it is being stopped
    assert supervisor._workers["controlnet_large"] is worker

"""One real Triton server on the demo bundle for all tests, on free ports, through tessera-serve."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tessera_client import Client

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "demo"
CHECKPOINT = ROOT / "build" / "demo_model" / "base"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.triton)


@dataclass
class Server:
    """A running `tessera-serve`."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    metrics_port: int
    log: Path

    @property
    def http(self) -> str:
        return f"http://localhost:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"grpc://localhost:{self.grpc_port}"

    def ready(self, model: str = "") -> bool:
        path = f"/v2/models/{model}/ready" if model else "/v2/health/ready"
        try:
            with urllib.request.urlopen(self.http + path, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait_started(self) -> None:
        """Until tessera-serve says that it is ready, first pictures made."""
        self.wait_ready()
        end = time.monotonic() + 60
        while "is ready after" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def wait_ready(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not self.ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def serving(bundle: Path, log: Path, *flags: str) -> Iterator[Server]:
    """`tessera-serve` on a bundle, ended with SIGTERM."""
    http, grpc, metrics = free_ports(3)
    command = [str(Path(sys.executable).parent / "tessera-serve"), str(bundle), "-v", *flags]
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    with log.open("wb") as sink:
        process = subprocess.Popen([*command, *ports], stdout=sink, stderr=subprocess.STDOUT)
        server = Server(process, http, grpc, metrics, log)
        try:
            server.wait_started()
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The demo bundle, built when it is missing or stale."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    build = [str(Path(sys.executable).parent / "tessera-build"), "demo", "--out", str(BUNDLE)]
    subprocess.run(build, check=True, cwd=ROOT, env=environment)
    return BUNDLE


@pytest.fixture(scope="session")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(bundle, tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client over each protocol."""
    with Client(getattr(server, request.param), timeout=120) as opened:
        yield opened


@pytest.fixture
def http_client(server: Server) -> Iterator[Client]:
    with Client(server.http, timeout=120) as opened:
        yield opened

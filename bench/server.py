"""Starts `tessera-serve` as a user would, for the demo, the benchmarks and the tests."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.serve.tritonserver import (
    Ports,
    command,
    environment,
    find_server,
    model_repository,
    models_of,
)

ROOT = Path(__file__).resolve().parents[1]
DEMO_BUNDLE = ROOT / "bundles" / "demo"
DEMO_CHECKPOINT = ROOT / "build" / "demo_model" / "base"
ALL_MODELS = tuple(models_of(model_repository()))
_STARTS_WITHIN_S = 180.0
_ENDS_WITHIN_S = 150.0  # tessera-serve gives its server 60


@dataclass
class Server:
    """A running `tessera-serve`; `log` is what it and tritonserver print."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    metrics_port: int
    log: Path

    @property
    def http(self) -> str:
        """The address of the HTTP endpoint, as `Client` takes it."""
        return f"http://localhost:{self.http_port}"

    @property
    def grpc(self) -> str:
        """The address of the gRPC endpoint, as `Client` takes it."""
        return f"grpc://localhost:{self.grpc_port}"

    def ready(self, model: str = "") -> bool:
        """What the server says of itself or of one model."""
        path = f"/v2/models/{model}/ready" if model else "/v2/health/ready"
        try:
            with urllib.request.urlopen(self.http + path, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait_ready(
        self, seconds: float = _STARTS_WITHIN_S, models: Sequence[str] = ALL_MODELS
    ) -> None:
        """Wait until the models say that they are ready, the internal ones too.

        Raises:
            RuntimeError: it has ended, or one is not ready in time; the message is its log.
        """
        self.wait_until(lambda: all(map(self.ready, models)), seconds)

    def wait_started(self, seconds: float = _STARTS_WITHIN_S) -> None:
        """Wait until `tessera-serve` says that it is ready, its first pictures made.

        Raises:
            RuntimeError: as `wait_ready`.
        """
        self.wait_until(lambda: "is ready after" in self.log.read_text(), seconds)

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until something is the case.

        Raises:
            RuntimeError: as `wait_ready`.
        """
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"waited {seconds:.0f} s for it:\n{self.log.read_text()}")
            time.sleep(0.05)


def _ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def plain_serving(
    repositories: Sequence[Path], log: Path, *, explicit: bool = False, **variables: str
) -> Iterator[Server]:
    """A tritonserver on free ports that no `tessera-serve` looks after.

    Args:
        repositories: whose models it loads, all of them.
        log: what it prints.
        explicit: whether models can be loaded and unloaded later.
        variables: of its environment.

    Raises:
        RuntimeError: it does not start; the message is its log.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        found, ports = find_server(Path(folder)), Ports(*free_ports(3))
        own = {} if "TESSERA_TEMPLATES" in variables else {"TESSERA_TEMPLATES": f"{folder}/kept"}
        load = [name for repository in repositories for name in models_of(repository)]
        line = command(found, repositories, ports, load=load, extra=["--log-info=false"])
        if not explicit:
            line = [a for a in line if "model-control-mode" not in a and "load-model" not in a]
        with (
            log.open("wb") as sink,
            subprocess.Popen(
                line, env=environment(found, **own, **variables), stdout=sink, stderr=sink
            ) as process,
        ):
            server = Server(process, ports.http, ports.grpc, ports.metrics, log)
            try:
                server.wait_ready(models=load)
                yield server
            finally:
                process.terminate()
                _ended(process)


@contextlib.contextmanager
def serving(bundle: Path, log: Path, *flags: str) -> Iterator[Server]:
    """`tessera-serve` on a bundle, on free ports, ended with SIGTERM; templates are kept beside the
    log.

    Raises:
        RuntimeError: it does not start; the message is its log.
    """
    http, grpc, metrics = free_ports(3)
    command = [sys.executable, "-m", "tessera.serve", str(bundle), "-v"]
    flags = (f"--templates={log.parent / 'templates'}", *flags)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *ports, *flags], stdout=sink, stderr=subprocess.STDOUT
        )
        server = Server(process, http, grpc, metrics, log)
        try:
            server.wait_started()
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            _ended(process)

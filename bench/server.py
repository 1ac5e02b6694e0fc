"""Starts `tessera-serve` as a user would, for the demo, the benchmarks and the tests."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.contract.limits import MAX_SLOTS
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
SHARED = f"--slots={MAX_SLOTS}"
"""Flag of a server of which as many requests as on a GPU share a step."""
ALL_MODELS = tuple(models_of(model_repository()))
_PORTS = range(20_000, 32_000)
"""Below those that Linux gives to connections: a connection could take a port before its server."""
_STARTS_WITHIN_S = 300.0
_ENDS_WITHIN_S = 150.0  # tessera-serve gives its server 60


@dataclass
class Server:
    """A running server. `log` is the file with the output of `tessera-serve` and tritonserver."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    metrics_port: int
    log: Path

    @property
    def http(self) -> str:
        """The address of the HTTP endpoint, for `Client`."""
        return f"http://localhost:{self.http_port}"

    @property
    def grpc(self) -> str:
        """The address of the gRPC endpoint, for `Client`."""
        return f"grpc://localhost:{self.grpc_port}"

    def ready(self, model: str = "") -> bool:
        """Whether the server, or one model, reports that it is ready."""
        path = f"/v2/models/{model}/ready" if model else "/v2/health/ready"
        try:
            with urllib.request.urlopen(self.http + path, timeout=30) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait_ready(
        self, seconds: float = _STARTS_WITHIN_S, models: Sequence[str] = ALL_MODELS
    ) -> None:
        """Wait until the models say that they are ready, the internal ones too.

        Raises:
            RuntimeError: the server has ended, or a model is not ready in time. The message has the
                log.
        """
        self.wait_until(lambda: all(map(self.ready, models)), seconds)

    def wait_started(self, seconds: float = _STARTS_WITHIN_S) -> None:
        """Wait until `tessera-serve` reports that it is ready, after its first images.

        Raises:
            RuntimeError: see `wait_ready`.
        """
        self.wait_until(lambda: "is ready after" in self.log.read_text(), seconds)

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until a condition is true.

        Raises:
            RuntimeError: see `wait_ready`.
        """
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"not ready within {seconds:.0f} s:\n{self.log.read_text()}")
            time.sleep(0.05)


def _ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now.

    Raises:
        RuntimeError: there are not so many.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            tried = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                tried.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"{count} free ports were asked for; there are {len(found)}")


@contextlib.contextmanager
def plain_serving(
    repositories: Sequence[Path], log: Path, *, explicit: bool = False, **variables: str
) -> Iterator[Server]:
    """Run a tritonserver on free ports without `tessera-serve`.

    Args:
        repositories: model repositories; all their models are loaded.
        log: file for the server's output.
        explicit: whether models can be loaded and unloaded later.
        variables: additional environment variables.

    Raises:
        RuntimeError: the server does not start. The message has its log.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        found, ports = find_server(Path(folder)), Ports(*free_ports(3))
        variables = {"TESSERA_TEMPLATES": f"{folder}/kept", **variables}
        load = [name for repository in repositories for name in models_of(repository)]
        line = command(found, repositories, ports, load=load, extra=["--log-info=false"])
        if not explicit:
            line = [a for a in line if "model-control-mode" not in a and "load-model" not in a]
        with (
            log.open("wb") as sink,
            subprocess.Popen(
                line, env=environment(found, **variables), stdout=sink, stderr=sink
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
def serving(
    bundle: Path,
    log: Path,
    *flags: str,
    seconds: float = _STARTS_WITHIN_S,
    program: Sequence[str] = ("tessera.serve",),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run `tessera-serve` on a bundle and free ports, and end it with SIGTERM.

    Templates are stored in the folder of the log.

    Args:
        bundle: its folder.
        log: file for the server's output.
        flags: further ones of `tessera-serve`.
        seconds: to wait until it is ready.
        program: a module that does what `tessera.serve` does, and what comes before the bundle.
        variables: additional environment variables.

    Raises:
        RuntimeError: the server does not start. The message has its log.
    """
    http, grpc, metrics = free_ports(3)
    command = [sys.executable, "-m", *program, str(bundle), "-v"]
    flags = (f"--templates={log.parent / 'templates'}", *flags)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *ports, *flags],
            env={**os.environ, **(variables or {})},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
        server = Server(process, http, grpc, metrics, log)
        try:
            server.wait_started(seconds)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            _ended(process)

"""Gateways of tests, as processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.server import free_ports
from tests.samples.waiting import PATIENCE_S


@dataclass
class RunningGateway:
    """A gateway that answers. `log` is the file with its output."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        """Whether it does, whatever it says."""
        try:
            with urllib.request.urlopen(f"{self.url}/openapi.json", timeout=30):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False


@dataclass(frozen=True)
class Guarded:
    """A gateway with keys: a token that it accepts, and an operator's."""

    gateway: RunningGateway
    token: str
    operator: str


@contextlib.contextmanager
def gateway(triton: str, log: Path, *flags: str) -> Iterator[RunningGateway]:
    """Run `tessera-gateway` in front of a server, on a free port.

    Raises:
        RuntimeError: it does not start. The message has its log.
    """
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tessera_gateway", f"--triton={triton}", f"--port={port}"]
    with (
        log.open("wb") as sink,
        subprocess.Popen([*command, *flags], stdout=sink, stderr=sink) as process,
    ):
        running = RunningGateway(process, port, log)
        try:
            end = time.monotonic() + PATIENCE_S
            while not running.answers():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the gateway does not answer:\n{log.read_text()}")
                time.sleep(0.05)
            yield running
        finally:
            process.terminate()
            process.wait(PATIENCE_S)

"""Fleets of tests, by `tessera-fleet` as a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.server import free_ports
from tessera_client import Client
from tests.samples.waiting import PATIENCE_S

_STARTS_WITHIN_S, _ENDS_WITHIN_S = 400.0, 150.0


@dataclass(frozen=True)
class RunningFleet:
    """A fleet's process and its ports."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    log: Path

    @property
    def http(self) -> str:
        """Its address for HTTP."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        """Its address for gRPC."""
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def about(self) -> dict[str, Any]:
        """What it tells of its workers."""
        with urllib.request.urlopen(f"{self.http}/v1/fleet", timeout=PATIENCE_S) as answer:
            told: dict[str, Any] = json.load(answer)
            return told

    def live(self) -> int | None:
        """How many workers can be reached; `None` if the fleet itself cannot."""
        try:
            return sum(worker["live"] for worker in self.about()["workers"])
        except OSError:
            return None

    def wait(self, workers: int, log: str = "") -> None:
        """Wait until it has so many workers.

        Raises:
            RuntimeError: it ends, or that takes too long. The message has its log.
        """
        end = time.monotonic() + _STARTS_WITHIN_S
        while self.live() != workers:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(
                    f"there are no {workers} workers:\n{self.log.read_text()[-9000:]}"
                )
            time.sleep(0.2)

    @contextlib.contextmanager
    def clients(self) -> Iterator[tuple[Client, Client]]:
        """Clients over HTTP and gRPC, which try nothing twice."""
        with (
            Client(self.http, timeout=600, retries=0) as http,
            Client(self.grpc, timeout=600, retries=0) as grpc,
        ):
            yield http, grpc


@contextlib.contextmanager
def fleet_of(folder: Path, workers: int, **settings: Any) -> Iterator[RunningFleet]:
    """Run `tessera-fleet` until it has so many workers, and end it with SIGTERM."""
    http, grpc = free_ports(2)
    content = {**settings, "http_port": http, "grpc_port": grpc}
    (folder / "fleet.yaml").write_bytes(msgspec.yaml.encode(content))
    log = folder / "fleet.log"
    program = Path(sys.executable).with_name("tessera-fleet")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [program, folder / "fleet.yaml"],
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        fleet = RunningFleet(process, http, grpc, log)
        try:
            fleet.wait(workers)
            yield fleet
            if process.poll() != -signal.SIGKILL:  # a test may kill it
                process.terminate()
                assert process.wait(_ENDS_WITHIN_S) == 0, log.read_text()[-9000:]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

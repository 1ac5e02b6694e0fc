"""Starts `tessera-fleet` in front of servers whose addresses are known, for benchmarks."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.server import free_ports

_STARTS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Front:
    """A running front.

    Attributes:
        process: `tessera-fleet`.
        grpc_port, http_port: where it listens.
    """

    process: psutil.Popen
    grpc_port: int
    http_port: int

    def computed_s(self) -> float:
        """Processor seconds so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def memory_mb(self) -> float:
        """Resident memory in MB."""
        return round(self.process.memory_info().rss / 1e6, 1)

    def live(self) -> int:
        """How many of its workers it can use."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/v1/fleet") as answer:
                return sum(worker["live"] for worker in json.load(answer)["workers"])
        except OSError:
            return 0


@contextlib.contextmanager
def fronted(servers: Sequence[Mapping[str, str]]) -> Iterator[Front]:
    """Run a front until the end of the block.

    Args:
        servers: of each its `grpc` and `http`, HOST:PORT.

    Raises:
        RuntimeError: it does not see all of them in time, or has ended.
    """
    grpc, http = free_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.yaml"
        path.write_text(json.dumps({"servers": servers, "grpc_port": grpc, "http_port": http}))
        command = [Path(sys.executable).with_name("tessera-fleet"), path]
        front = Front(psutil.Popen(command), grpc, http)
        try:
            end = time.monotonic() + _STARTS_WITHIN_S
            while front.live() < len(servers):
                if front.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"tessera-fleet does not see {len(servers)} workers in time")
                time.sleep(0.1)
            yield front
        finally:
            front.process.terminate()
            front.process.wait()

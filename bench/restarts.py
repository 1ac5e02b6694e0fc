"""What comes after the end of a server's processes: `python -m bench restarts`.

Starts `tessera-serve` on the demo bundle, kills its tritonserver until pictures come again, then
kills `tessera-serve` itself until none of its processes is left, starts it once more on the same
ports, and stops that one by SIGTERM. Writes seconds to bench/results/restarts.json; a round takes
about a minute.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import psutil
from rich.console import Console

from bench import report
from bench.server import DEMO_BUNDLE, Server, serving
from tessera.errors import TesseraError
from tessera_client import Client

LONGEST_S = 120.0
console = Console(highlight=False)
Seconds = dict[str, list[float]]


def main() -> None:
    """Print each round, and write all."""
    parser = argparse.ArgumentParser(description="seconds until a server serves again")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="another file")
    options = parser.parse_args()
    machine = report.describe_machine(0)
    found: Seconds = defaultdict(list)
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as name:
            _round(Path(name), found)
        console.print({what: round(values[-1], 2) for what, values in found.items()})
    report.write("restarts", {"runs": options.runs}, found, machine=machine, out=options.out)


def _round(folder: Path, found: Seconds) -> None:
    began = time.monotonic()
    with serving(DEMO_BUNDLE, folder / "log") as server:
        found["start"].append(time.monotonic() - began)
        with Client(server.http) as client:
            client.generate("a", steps=1)
            (triton,) = psutil.Process(server.process.pid).children()
            began = time.monotonic()
            triton.kill()
            triton.wait()
            _wait(lambda: _draws(client))
            found["tritonserver killed"].append(time.monotonic() - began)
        family = psutil.Process(server.process.pid).children(recursive=True)
        began = time.monotonic()
        server.process.kill()
        _wait(lambda: not any(_lives(process) for process in family))
        found["tessera-serve killed"].append(time.monotonic() - began)
        _next_start(server, folder / "next", found)


def _next_start(server: Server, log: Path, found: Seconds) -> None:
    """Start a server on the ports of one that was killed, and stop it."""
    ports = (server.http_port, server.grpc_port, server.metrics_port)
    names = ("--http-port", "--grpc-port", "--metrics-port")
    flags = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    began = time.monotonic()
    with serving(DEMO_BUNDLE, log, *flags):
        found["the next start"].append(time.monotonic() - began)
        began = time.monotonic()
    found["stop"].append(time.monotonic() - began)


def _wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONGEST_S
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"it has not come about within {LONGEST_S:.0f} s")
        time.sleep(0.02)


def _draws(client: Client) -> bool:
    try:
        client.generate("a", steps=1)
    except TesseraError:
        return False
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()

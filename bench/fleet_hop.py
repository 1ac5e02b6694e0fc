"""What the way through a fleet's front adds to a request, over HTTP and gRPC.

    python -m bench fleet-hop [--rounds 40]

Starts a worker on the demo bundle and `tessera-fleet` in front of it. Direct requests and those
through the front take turns. Each is an edit that the worker refuses once it has all of it: the
mask is empty, or the picture too large for the bundle. So no drawing hides the difference. What the
front's process computed for a request is measured, too. Writes `bench/results/fleet_hop.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from rich.console import Console

from bench import report
from bench.fleet_front import Front, fronted
from bench.fleet_traffic import address, workers
from bench.server import ROOT, Server

SIDES = (128, 1024)
PROTOCOLS = {"HTTP": tritonclient.http, "gRPC": tritonclient.grpc}
WARM_UP = 5
"""Turns that are not counted."""
console = Console(highlight=False)


def main() -> None:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description="what a fleet's front adds")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="another file for the report")
    options = parser.parse_args()
    machine, rows = report.describe_machine(len(os.sched_getaffinity(0))), []
    with (
        workers(ROOT / "out" / "fleet-hop", 1) as (worker,),
        fronted([address(worker)]) as front,
    ):
        for protocol in PROTOCOLS:
            for side in SIDES:
                rows.append(measured(protocol, side, worker, front, options.rounds))
                more = statistics.median(differences(rows[-1]))
                console.print(f"{protocol}, {side} x {side}: {more:.1f} ms more")
    settings = report.settings_of(options)
    file = report.write("fleet_hop", settings, rows, machine=machine, out=options.out)
    console.print(f"written: {file}")


def measured(protocol: str, side: int, worker: Server, front: Front, rounds: int) -> dict[str, Any]:
    """A row of the report: milliseconds of each turn both ways, and the front's computing."""
    module = PROTOCOLS[protocol]
    ports = {
        "direct": worker.http_port if protocol == "HTTP" else worker.grpc_port,
        "front": front.http_port if protocol == "HTTP" else front.grpc_port,
    }
    clients = {way: module.InferenceServerClient(f"127.0.0.1:{p}") for way, p in ports.items()}
    took: dict[str, list[float]] = {way: [] for way in ports}
    before = front.computed_s()
    for number in range(rounds + WARM_UP):
        for way in sorted(took, reverse=number % 2 == 1):
            took[way].append(round(_refused(clients[way], module, side), 3))
    computed = 1e3 * (front.computed_s() - before) / (rounds + WARM_UP)
    for client in clients.values():
        client.close()
    ms = {f"{way}_ms": of[WARM_UP:] for way, of in took.items()}
    return {"protocol": protocol, "side": side, **ms, "computed_ms": round(computed, 2)}


def differences(row: dict[str, Any]) -> list[float]:
    """What the front adds in each turn, in milliseconds."""
    return [more - ms for ms, more in zip(row["direct_ms"], row["front_ms"], strict=True)]


def _refused(client: Any, module: Any, side: int) -> float:
    """Milliseconds of an edit that is refused."""
    arrays = {
        "PROMPT": np.array([[b"x"]], np.object_),
        "IMAGE": np.zeros((1, side, side, 3), np.uint8),
        "MASK": np.zeros((1, side, side), np.uint8),
    }
    inputs = []
    for name, array in arrays.items():
        dtype = "BYTES" if array.dtype == np.object_ else "UINT8"
        tensor = module.InferInput(name, list(array.shape), dtype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    began = time.perf_counter()
    try:
        client.infer("edit", inputs)
    except Exception as error:
        if "MASK has no pixel" not in str(error) and "IMAGE has" not in str(error):
            raise
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()

"""What the way through a fleet's front adds to a request, over HTTP and gRPC.

    python -m bench.fleet_hop --fleet HTTP_PORT GRPC_PORT --worker HTTP_PORT GRPC_PORT [--rounds 40]

All on this machine, and the fleet has this one worker only. Direct requests and those through the
front take turns. Each is an edit that the worker refuses once it has all of it: the mask is empty,
or the picture too large for the bundle. So no drawing hides the difference. The last column is what
the front's process computed for a request.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import psutil
import tritonclient.grpc
import tritonclient.http

SIDES = (128, 1024)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="what a fleet's front adds")
    parser.add_argument("--fleet", nargs=2, type=int, required=True, help="ports")
    parser.add_argument("--worker", nargs=2, type=int, required=True, help="ports")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    front = _listening(options.fleet[0])
    titles = (
        "protocol",
        "side",
        "direct, ms",
        "through the front, ms",
        "more, ms",
        "front's CPU, ms",
    )
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for index, module in enumerate((tritonclient.http, tritonclient.grpc)):
        ports = {"direct": options.worker[index], "front": options.fleet[index]}
        clients = {
            way: module.InferenceServerClient(f"127.0.0.1:{port}") for way, port in ports.items()
        }
        for side in SIDES:
            took: dict[str, list[float]] = {"direct": [], "front": []}
            before = _computed(front)
            for number in range(options.rounds + 5):
                for way in sorted(took, reverse=number % 2 == 1):
                    elapsed = _refused(clients[way], module, side)
                    if number >= 5:
                        took[way].append(elapsed)
            name = module.__name__.rpartition(".")[2]
            more = [b - a for a, b in zip(took["direct"], took["front"], strict=True)]
            computed = 1e3 * (_computed(front) - before) / (options.rounds + 5)
            cells = [_cell(took["direct"]), _cell(took["front"]), _cell(more), f"{computed:.1f}"]
            print(f"| {name} | {side} | {' | '.join(cells)} |", flush=True)
        for client in clients.values():
            client.close()


def _listening(port: int) -> psutil.Process:
    """The process that listens at a port of this machine."""
    for each in psutil.net_connections("tcp"):
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid:
            return psutil.Process(each.pid)
    raise SystemExit(f"nothing listens at port {port}")


def _computed(process: psutil.Process) -> float:
    """Processor seconds so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _refused(client: object, module: object, side: int) -> float:
    """Milliseconds of an edit that is refused."""
    arrays = {
        "PROMPT": np.array([[b"x"]], np.object_),
        "IMAGE": np.zeros((1, side, side, 3), np.uint8),
        "MASK": np.zeros((1, side, side), np.uint8),
    }
    inputs = []
    for name, array in arrays.items():
        dtype = "BYTES" if array.dtype == np.object_ else "UINT8"
        tensor = module.InferInput(name, list(array.shape), dtype)  # type: ignore[attr-defined]
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    began = time.perf_counter()
    try:
        client.infer("edit", inputs)  # type: ignore[attr-defined]
    except Exception as error:
        if "MASK has no pixel" not in str(error) and "IMAGE has" not in str(error):
            raise
    return 1e3 * (time.perf_counter() - began)


def _cell(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


if __name__ == "__main__":
    main()

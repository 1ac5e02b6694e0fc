"""How long a server takes to start and to stop, and what is used first takes longer.

    python -m bench startup [--runs 5]

Measures the demo bundle (`make bundle`): until `tessera-serve` says that it is ready, with the CPU
time that each model's processes have used by then; the first and the second list of LoRAs; the
first and the second use of a ControlNet, in pictures of two steps; until it has ended behind
SIGTERM, idle and while pictures are being drawn. Writes `bench/results/startup.json`.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import report
from bench.server import DEMO_BUNDLE, Server, serving
from tessera.shared.processes import model_processes
from tessera_client import Client, Control, TesseraError

CLIENTS = 24
PROMPT = "a large red circle at the left on a blue background"
_TICKS = os.sysconf("SC_CLK_TCK")
console = Console(highlight=False)
Seconds = dict[str, list[float]]


def main() -> None:
    """Measure, print medians, write the report."""
    parser = argparse.ArgumentParser(description="times of start and stop")
    parser.add_argument("--runs", type=int, default=5, help="servers to start for each number")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE, help="bundle to serve")
    parser.add_argument("--out", type=Path, help="another file for the report")
    options = parser.parse_args()
    machine = report.describe_machine(len(os.sched_getaffinity(0)))
    wall, cpu = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for run in range(2 * options.runs):
        _measure(options.bundle, wall, cpu, loaded=run % 2 == 1)
    _print("seconds", wall)
    _print("CPU seconds at readiness, by model", cpu)
    measured = {"seconds": wall, "cpu_s": cpu}
    results = {
        what: {name: [round(s, 3) for s in of] for name, of in values.items()}
        for what, values in measured.items()
    }
    settings = {"runs": options.runs, "bundle": options.bundle.name}
    file = report.write("startup", settings, results, machine=machine, out=options.out)
    console.print(f"written: {file}")


def _measure(bundle: Path, wall: Seconds, cpu: Seconds, *, loaded: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        with serving(bundle, Path(folder) / "log") as server:
            wall["start"].append(time.monotonic() - began)
            for model, used in _used(server).items():
                cpu[model].append(used)
            if loaded:
                answers = _under_load(server, wall)
                console.print(f"answers under load: {dict(answers)}")
                return
            with Client(server.http) as client:
                _first_and_second("list of LoRAs", client.adapters, wall)
                square = np.zeros((64, 64, 3), np.uint8)
                control = Control("edges", square, resize="stretch")
                _first_and_second(
                    "picture with a ControlNet",
                    lambda: client.generate(PROMPT, steps=2, controls=[control]),
                    wall,
                )
            _stop(server, wall, "stop, idle")


def _first_and_second(what: str, call: Callable[[], object], wall: Seconds) -> None:
    for which in ("first", "second"):
        began = time.monotonic()
        call()
        wall[f"{which} {what}"].append(time.monotonic() - began)


def _stop(server: Server, wall: Seconds, what: str) -> None:
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait()
    wall[what].append(time.monotonic() - began)


def _under_load(server: Server, wall: Seconds) -> Counter[str]:
    """Stop it while clients ask for one picture after the other."""
    answers, over = Counter[str](), threading.Event()

    def ask(seed: int) -> None:
        with Client(server.http) as client:
            while not over.wait(0.1):
                try:
                    client.generate(PROMPT, steps=30, seed=seed)
                    answers["picture"] += 1
                except TesseraError as error:
                    answers[type(error).__name__] += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        for seed in range(CLIENTS):
            pool.submit(ask, seed)
        time.sleep(5)
        _stop(server, wall, "stop, under load")
        over.set()
    return answers


def _used(server: Server) -> dict[str, float]:
    """CPU seconds of the processes of each model, and of `tessera-serve` and tritonserver."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    triton = int(children.split()[0])
    used = defaultdict[str, float](float)
    used["tessera-serve"] = _cpu(server.process.pid)
    used["tritonserver"] = _cpu(triton)
    for process, model in model_processes(triton).items():
        used[model] += _cpu(process)
    return {**used, "together": sum(used.values())}


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _print(title: str, values: Seconds) -> None:
    table = Table("", "median", "smallest", "largest", title=title)
    for name, own in values.items():
        table.add_row(name, *(f"{f(own):.2f}" for f in (statistics.median, min, max)))
    console.print(table)


if __name__ == "__main__":
    main()

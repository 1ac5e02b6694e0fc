"""`make bench`: measures the ratios in the README's tables on this machine.

The two sides of a ratio alternate within the run, so that other load on the machine affects both.
The report is written to `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import edit_latency, latency, load, sparse
from bench.server import DEMO_BUNDLE, ROOT, serving

RESULTS = ROOT / "bench" / "results" / "cpu.json"
EDITS = 5
"""Turns of each side for edits."""
_LIBRARIES = ("torch", "diffusers", "onnxruntime", "numpy", "nvidia-pytriton")
console = Console(highlight=False)


def main() -> None:
    """Measure, print the tables, write the report."""
    parser = argparse.ArgumentParser(description="Tessera against diffusers on this machine")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each side")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of an image")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the report")
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error(f"--rounds is {options.rounds}; accepted: 3 or more (for quartiles)")
    threads = len(os.sched_getaffinity(0))
    machine = describe_machine(threads)
    console.rule(f"{machine['cpu']}, {threads} threads")
    log = ROOT / "out" / "bench-server.log"
    log.parent.mkdir(exist_ok=True)
    with serving(DEMO_BUNDLE, log, f"--threads={threads}") as server:
        turns = latency.measure(server, rounds=options.rounds, steps=options.steps, threads=threads)
        console.print(latency.table(turns))
        levels = load.measure(server, steps=options.steps)
        console.print(load.table(levels))
    edits = edit_latency.compare("demo", rounds=EDITS, steps=options.steps, threads=threads)
    console.print(edit_latency.table(edits))
    sparse.prepare()
    ratios = sparse.measure_all()
    console.print(sparse.table(ratios))
    report = {
        "date": date.today().isoformat(),
        "machine": machine,
        "latency": {"steps": options.steps, **latency.summary(turns)},
        "load": {name: [asdict(level) for level in found] for name, found in levels.items()},
        "edits": [asdict(level) for level in edits],
        "sparse": [asdict(ratio) for ratio in ratios],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written: {options.out}")


def describe_machine(threads: int) -> dict[str, Any]:
    """The machine and library versions that the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "threads": threads,
        "load_average_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _LIBRARIES},
    }


if __name__ == "__main__":
    main()

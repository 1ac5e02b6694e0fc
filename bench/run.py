"""Pictures and edits against diffusers on this machine, throughput, and one UNet step.

    python -m bench pictures [--rounds 40] [--steps 20]

The two sides of a ratio alternate within the run, so that other load on the machine affects both.
Writes `bench/results/cpu.json`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bench import edit_latency, latency, load, report, sparse
from bench.server import DEMO_BUNDLE, ROOT, SHARED, serving

EDITS = 5
"""Turns of each side for edits."""
console = Console(highlight=False)


def main() -> None:
    """Measure, print the tables, write the report."""
    parser = argparse.ArgumentParser(description="Tessera against diffusers on this machine")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each side")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of an image")
    parser.add_argument(
        "--out", type=Path, default=report.path_of("cpu"), help="where to write the report"
    )
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error(f"--rounds is {options.rounds}; accepted: 3 or more (for quartiles)")
    threads = len(os.sched_getaffinity(0))
    machine = report.describe_machine(threads)
    console.rule(f"{machine['cpu']}, {threads} threads")
    log = ROOT / "out" / "bench-server.log"
    log.parent.mkdir(exist_ok=True)
    with serving(DEMO_BUNDLE, log, SHARED, f"--threads={threads}") as server:
        turns = latency.measure(server, rounds=options.rounds, steps=options.steps, threads=threads)
        console.print(latency.table(turns))
        levels = load.measure(server, steps=options.steps)
        console.print(load.table(levels))
    edits = edit_latency.compare("demo", rounds=EDITS, steps=options.steps, threads=threads)
    console.print(edit_latency.table(edits))
    sparse.prepare()
    ratios = sparse.measure_all()
    console.print(sparse.table(ratios))
    results = {
        "latency": {**latency.summary(turns), "turns": latency.samples(turns)},
        "load": {name: [asdict(level) for level in found] for name, found in levels.items()},
        "edits": [asdict(level) for level in edits],
        "sparse": [asdict(ratio) for ratio in ratios],
    }
    settings = {"steps": options.steps, "rounds": options.rounds, "edit_rounds": EDITS}
    report.write("cpu", settings, results, machine=machine, out=options.out)
    console.print(f"written: {options.out}")


if __name__ == "__main__":
    main()

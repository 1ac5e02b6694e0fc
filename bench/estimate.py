"""How far `seconds_left` of a job is from the truth, over the life of jobs of a server.

    python -m bench estimate [--steps 60]

Jobs are started together: one, a half batch, more than have slots, and as many where every second
one is an edit of a recorded template. Each is asked about five times a second. The error is a
share of what was really left, as long as that was more than half a second. Writes
`bench/results/estimate.json`.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench import report
from bench.edit_quality import square
from bench.gateway import quartiles
from bench.latency import PROMPT
from bench.server import DEMO_BUNDLE, ROOT, SHARED, serving
from tessera.errors import UnknownJob
from tessera_build.demo.draw import render
from tessera_build.demo.scenes import held_out_scenes
from tessera_client import Client

JOBS = (1, 4, 12)
"""Jobs at once; 8 have a slot."""
MIXED = 12
"""Jobs at once of which every second one is an edit."""
INTERVAL_S = 0.2
SHORTEST_S = 0.5
Draw = Callable[[str], object]
console = Console(highlight=False)


def main() -> None:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description="how far seconds_left is from the truth")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=report.path_of("estimate"))
    options = parser.parse_args()
    machine = report.describe_machine(0)
    log = ROOT / "out" / "bench-estimate.log"
    log.parent.mkdir(exist_ok=True)
    with serving(DEMO_BUNDLE, log, SHARED) as server, Client(server.grpc, timeout=900) as client:
        generate: Draw = partial(_generate, client, options.steps)
        edit = _edit_of(client, options.steps)
        results = [foretold(client, f"{count}", [generate] * count) for count in JOBS]
        mixed = [generate, edit] * (MIXED // 2)
        results.append(foretold(client, f"{MIXED}, half of them edits", mixed))
    console.print_json(data=[{k: v for k, v in r.items() if k != "samples"} for r in results])
    settings = {"steps": options.steps, "interval_s": INTERVAL_S, "shortest_s": SHORTEST_S}
    report.write("estimate", settings, results, machine=machine, out=options.out)


def _generate(client: Client, steps: int, job: str) -> None:
    client.generate(PROMPT, steps=steps, job_id=job)


def _edit_of(client: Client, steps: int) -> Draw:
    """Edits a template that is recorded now."""
    picture = np.rint(255 * render(held_out_scenes(1)[0])).astype(np.uint8)
    client.register_template(picture, steps=steps, timeout=900)
    mask = square((64, 64), 0.15)

    def edit(job: str) -> None:
        client.edit(picture, mask, PROMPT, steps=steps, job_id=job)

    return edit


def foretold(client: Client, label: str, draws: list[Draw]) -> dict[str, Any]:
    """What was told of jobs that are started together, and what was true."""
    told: list[tuple[str, float, float]] = []
    ends: dict[str, float] = {}

    def run(job: str, draw: Draw) -> None:
        draw(job)
        ends[job] = time.monotonic()

    names = [f"foretold-{label.split(',')[0]}-{len(label)}-{i}" for i in range(len(draws))]
    threads = [threading.Thread(target=run, args=pair) for pair in zip(names, draws, strict=True)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for name in names:
            try:
                left = client.status(name).seconds_left
            except UnknownJob:
                continue
            if left is not None:
                told.append((name, time.monotonic(), left))
        time.sleep(INTERVAL_S)
    return {"jobs": label, **errors(told, ends)}


def errors(told: list[tuple[str, float, float]], ends: dict[str, float]) -> dict[str, Any]:
    """Shares by which estimates were off.

    Args:
        told: job, time of the answer, and seconds that it gave.
        ends: when each job was done.
    """
    samples = [(left, ends[name] - when) for name, when, left in told]
    samples = [(left, true) for left, true in samples if true > SHORTEST_S]
    off = [abs(left - true) / true for left, true in samples]
    return {
        "answers": len(off),
        "relative_error": quartiles(off) if len(off) > 1 else [],
        "samples": [[round(left, 3), round(true, 3)] for left, true in samples],
    }


if __name__ == "__main__":
    main()

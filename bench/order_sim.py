"""Whose turn it is: orders of requests compared on simulated traces, step by step.

    python -m bench order-sim [--traces 40] [--requests 60]

Each step of each request takes the time given here, whoever shares it, as on a CPU. So orders
differ by nothing but who waits. Continuous sides choose by `tessera.denoise.slots`, the product's
own, or by arrival; static batches are those of `bench.ablated_models`. Writes
`bench/results/order_sim.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from bench import report, trace
from bench.replay import add_workload, workload_of
from bench.trace import Asked
from tessera.denoise.slots import CONTROL, by_arrival, in_turn

DENSE_S, SPARSE_S, FIXED_S = 0.0425, 0.027, 0.1
"""Of a step of the demo model, guided, and of a picture's encoders and decoder: measured on two
cores on 2026-11-29, by requests that were alone (docs/internals/measurements.md)."""
SHARES = (0.42, 0.6, 0.8)
"""Loads, of the capacity. The first is that at which Tessera is compared with diffusers."""
Jobs = Sequence[Any]
console = Console(highlight=False)


def main() -> None:
    """Simulate, print, write the report."""
    options = _options()
    machine = report.describe_machine(1)
    workload = workload_of(options, 1.0)
    seen: dict[float, dict[str, list[float]]] = {share: {} for share in SHARES}
    for seed in track(range(options.traces), "traces", transient=True):
        requests = trace.make(options.requests, dataclasses.replace(workload, seed=seed))
        for share in SHARES:
            for name, side in SIDES.items():
                seen[share].setdefault(name, []).extend(side(jobs_of(requests, share)))
    results = {
        f"{share:g}": {name: figures(latencies) for name, latencies in of.items()}
        for share, of in seen.items()
    }
    for load, sides in results.items():
        console.print(load, sides)
    costs = {"dense_s": DENSE_S, "sparse_s": SPARSE_S, "fixed_s": FIXED_S, "control": CONTROL}
    settings = report.settings_of(options) | costs
    file = report.write("order_sim", settings, results, machine=machine, out=options.out)
    console.print(f"written: {file}")


def figures(latencies: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles, in seconds."""
    found = {f"p{p}": round(float(np.percentile(latencies, p)), 3) for p in (50, 95, 99)}
    return {"mean": round(float(np.mean(latencies)), 3), **found}


def jobs_of(requests: Sequence[Asked], share: float) -> Jobs:
    """Requests as the product's order sees them, arriving at a share of what a server can draw."""
    jobs = [_job(number, asked) for number, asked in enumerate(requests)]
    mean = sum(step_s(job) * job.sampler.evaluations + FIXED_S for job in jobs) / len(jobs)
    for job, asked in zip(jobs, requests, strict=True):
        job.plan.started = asked.at * mean / share
    return jobs


def step_s(job: Any) -> float:
    """Seconds of one of its steps."""
    return SPARSE_S if job.sparse else DENSE_S * (1 + CONTROL * len(job.controls))


def continuous(choose: Callable[..., list[Any]], slots: int, jobs: Jobs) -> list[float]:
    """Seconds from arrival to picture of each, if the slots are given anew at every step."""
    now, here, ahead = 0.0, list[Any](), list(jobs)
    while here or ahead:
        if not here:
            now = max(now, ahead[0].plan.started)
        while ahead and ahead[0].plan.started <= now:
            here.append(ahead.pop(0))
        now = _step(choose(here, slots, cost, now), now)
        here = [job for job in here if job.done is None]
    return [job.done - job.plan.started for job in jobs]


def static(most: int, jobs: Jobs) -> list[float]:
    """The same, if a batch of those that wait runs to its end, and is answered together."""
    now, ahead = 0.0, list(jobs)
    while ahead:
        now = max(now, ahead[0].plan.started)
        batch = [job for job in ahead[:most] if job.plan.started <= now]
        del ahead[: len(batch)]
        while any(job.done is None for job in batch):
            now = _step([job for job in batch if job.done is None], now)
        for job in batch:
            job.done = now
    return [job.done - job.plan.started for job in jobs]


def cost(kind: str, size: tuple[int, int], tokens: float) -> float:
    """Seconds of a step, as the product's order asks for them."""
    return SPARSE_S if kind == "sparse" else DENSE_S


def _step(turn: Jobs, now: float) -> float:
    """Move these by one step; the time at which it has ended."""
    now += sum(step_s(job) for job in turn)
    for job in turn:
        job.step += 1
        if job.step == job.sampler.evaluations:
            now += FIXED_S
            job.done = now
    return now


def _job(number: int, asked: Asked) -> Any:
    sparse = asked.template is not None
    return SimpleNamespace(
        plan=SimpleNamespace(priority=2, ticket=number, started=0.0),
        latents=SimpleNamespace(shape=(1, 4, 32, 32)),
        sampler=SimpleNamespace(evaluations=asked.steps),
        sparse=SimpleNamespace(kinds=(True,) * asked.steps, active_latents=1) if sparse else None,
        controls=[SimpleNamespace(use=SimpleNamespace(scale=1.0)) for _ in asked.controls],
        branches=1,
        step=0,
        done=None,
    )


def _arrivals(jobs: Jobs, slots: int, *_: Any) -> list[Any]:
    return by_arrival(jobs)[:slots]


SIDES: dict[str, Callable[[Jobs], list[float]]] = {
    "response ratio, 1 slot": lambda jobs: continuous(in_turn, 1, jobs),
    "response ratio, 2 slots": lambda jobs: continuous(in_turn, 2, jobs),
    "by arrival, 1 slot": lambda jobs: continuous(_arrivals, 1, jobs),
    "by arrival, 2 slots": lambda jobs: continuous(_arrivals, 2, jobs),
    "by arrival, 8 slots": lambda jobs: continuous(_arrivals, 8, jobs),
    "static batches of 2": lambda jobs: static(2, jobs),
    "static batches of 8": lambda jobs: static(8, jobs),
}
"""By name; the first is the product on a CPU."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="orders of requests, simulated")
    add_workload(parser, requests=60)
    parser.add_argument("--traces", type=int, default=40)
    parser.add_argument("--out", type=Path, help="another file")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""The simulation of a fleet against a real one: P50 and P95 of two workloads.

    python -m bench.fleet_validate [--workers 2] [--requests 120] [--steps 20] [--busy 0.5]
                                   [--rounds 3]

The simulation is told what a step costs alone and in a batch, what a sparse step costs by the size
of the mask, and what a picture takes beside its steps. Each is measured before, on as many workers
at the same time as there are cores: every worker uses one. If there are more workers than cores,
the simulation has them share these.
As workers have one core, what a picture takes beside its steps is taken from the steps
of others: the simulation adds it to the picture's own steps.
Then the same requests come at the same times in both. Nothing is missing on a worker.
Writes `bench/results/fleet_validate.json`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import report
from bench.fleet_locality import front
from bench.fleet_policies import POLICIES
from bench.fleet_sim import Simulation
from bench.fleet_traffic import Asked, Served, percentile, play, spread, workers
from bench.fleet_world import Request, World
from bench.server import ROOT, Server
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.score import predict

SIDES = (24, 56, 88)
TEMPLATES, BATCH, TURNS = 4, 4, 5
WORKLOADS = {"generations": 0.0, "generations and edits": 0.5}
"""Share of edits."""
console = Console(highlight=False)


@dataclass(frozen=True)
class Costs:
    """What the simulation is told, in milliseconds.

    Attributes:
        overhead: of a step, however many requests are in it.
        dense: what a request adds to it.
        sparse: the same of an edit, by the side of its mask.
        beside: of a picture, beside its steps; "edit" encodes one, too.
    """

    overhead: float
    dense: float
    sparse: dict[int, float]
    beside: dict[str, float]

    def of(self, asked: Asked, steps: int) -> float:
        """What a request adds to a step."""
        own = self.dense if asked.template is None else self.sparse[asked.side]
        return own + self.beside[asked.kind] / steps


def main() -> None:
    """Measure, simulate, print, write the report."""
    parser = argparse.ArgumentParser(description="simulated against real fleets")
    parser.add_argument("--workers", type=int, default=2, help="of the fleet")
    parser.add_argument("--requests", type=int, default=120, help="of a workload")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a picture")
    parser.add_argument("--busy", type=float, default=0.5, help="share of the workers' time")
    parser.add_argument("--rounds", type=int, default=3, help="of other requests each")
    parser.add_argument("--out", type=Path, help="another file for the report")
    options = parser.parse_args()
    if options.workers < 1:
        parser.error(f"--workers is {options.workers}; accepted: 1 and above")
    rows, cores = [], len(os.sched_getaffinity(0))
    machine = report.describe_machine(cores)
    with workers(ROOT / "out" / "fleet-validate", options.workers) as servers:
        for server in servers:  # every recording is on both
            known = [Asked("edit", template=n, side=SIDES[0]) for n in range(TEMPLATES)]
            play([server.grpc], known, steps=options.steps, at_once=1)
        costs = calibrated(servers[:cores], options.steps)
        console.print(costs)
        for seed, (name, edits) in itertools.product(range(options.rounds), WORKLOADS.items()):
            asked = workload(costs, edits, options, seed)
            with front(servers, predict) as url:
                served = play([url], asked, steps=options.steps, at_once=len(asked))
            real = [s.began * 1e3 + s.took_ms - s.asked.at * 1e3 for s in served]
            model = simulated(costs, asked, options.steps, workers=options.workers, cores=cores)
            rows.append(compared(name, real, model))
            console.print(rows[-1])
    results = {
        "costs": asdict(costs),
        "rounds": rows,
        "ratios": {name: _ratios(rows, name) for name in WORKLOADS},
    }
    console.print(results["ratios"])
    settings = report.settings_of(options)
    file = report.write("fleet_validate", settings, results, machine=machine, out=options.out)
    console.print(f"written: {file}")


def calibrated(servers: Sequence[Server], steps: int) -> Costs:
    """Measure these workers at the same time, because they share the machine."""

    def served(asked: Sequence[Asked], at_once: int) -> list[Served]:
        def one(server: Server) -> list[Served]:
            return play([server.grpc], asked, steps=steps, at_once=at_once)

        with ThreadPoolExecutor(len(servers)) as pool:
            return [each for part in pool.map(one, servers) for each in part]

    alone = served([Asked("plain")] * TURNS, 1)
    one = _step(alone)
    dense = (_step(served([Asked("plain")] * BATCH * TURNS, BATCH)) - one) / (BATCH - 1)
    overhead = max(0.0, one - dense)
    edits = {side: served([Asked("edit", template=0, side=side)] * TURNS, 1) for side in SIDES}
    sparse = {side: _step(edits[side]) - overhead for side in SIDES}
    beside = {"plain": _beside(alone), "edit": _beside([e for side in SIDES for e in edits[side]])}
    return Costs(overhead, dense, sparse, beside)


def workload(costs: Costs, edits: float, options: argparse.Namespace, seed: int) -> list[Asked]:
    """Requests at random times, so many that the workers, or their cores if these are fewer, are as
    busy as they should be.
    """
    at_once = min(options.workers, len(os.sched_getaffinity(0)))
    rng = random.Random(seed)
    asked = [
        Asked("edit", template=rng.randrange(TEMPLATES), side=rng.choice(SIDES))
        if rng.random() < edits
        else Asked("plain")
        for _ in range(options.requests)
    ]
    each = statistics.fmean(costs.overhead + costs.of(a, options.steps) for a in asked)
    each *= options.steps
    return spread(asked, options.busy * at_once * 1e3 / each, seed)


def simulated(
    costs: Costs, asked: Sequence[Asked], steps: int, *, workers: int = 2, cores: int = 2
) -> list[float]:
    """Milliseconds that each request takes in the simulation."""
    world = World(
        workers=workers,
        cores=cores,
        steps=steps,
        dense=costs.dense,
        overhead=costs.overhead,
        copy=0.0,
        read=0.0,
    )
    requests = [
        Request(1e3 * each.at, _peek(number, each), costs.of(each, steps), 0.0, steps)
        for number, each in enumerate(asked)
    ]
    Simulation(world, POLICIES["+ locality"], requests).run()
    return [request.done - request.at for request in requests]


def compared(name: str, real: Sequence[float], model: Sequence[float]) -> dict[str, Any]:
    """P50 and P95 of both, and the simulated one in terms of the real one."""
    row: dict[str, Any] = {"workload": name}
    for key, share in (("p50", 0.5), ("p95", 0.95)):
        measured, told = percentile(real, share), percentile(model, share)
        row[key] = {
            "real_ms": round(measured),
            "simulated_ms": round(told),
            "ratio": round(told / measured, 3),
        }
    return row


def _peek(number: int, asked: Asked) -> Peek:
    job = str(number)
    if asked.template is None:
        return Peek("generate", job=job)
    return Peek("edit", job=job, template=str(asked.template), mask=(asked.side / 128) ** 2)


def _ratios(rows: Sequence[dict[str, Any]], workload: str) -> dict[str, list[float]]:
    """Simulated against real, of every round: lowest, median, highest."""
    own = [row for row in rows if row["workload"] == workload]
    found = {key: sorted(row[key]["ratio"] for row in own) for key in ("p50", "p95")}
    return {key: [v[0], statistics.median(v), v[-1]] for key, v in found.items()}


def _beside(served: Sequence[Served]) -> float:
    """Milliseconds of a picture outside its steps, at the median, of requests one after another."""
    return statistics.median(each.took_ms - each.info.denoise_ms for each in served)


def _step(served: Sequence[Served]) -> float:
    """Milliseconds of a step at the median, of requests that shared their steps."""
    return statistics.median(each.info.denoise_ms / each.info.ticks for each in served)


if __name__ == "__main__":
    main()

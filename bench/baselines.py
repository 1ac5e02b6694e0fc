"""A trace against Tessera, and against a Triton Python model around diffusers' pipelines.

    python -m bench baselines [--scenario mixed] [--rounds 3] [--shares 0.8] [--equal 0.8]

The baseline (`bench/baseline_model.py`) is served by the same tritonserver, with the same weights
and threads: one request at a time, and with Triton's dynamic batcher, whose batch size and delay
are those of the best p95 on a short trace (`bench.baseline_server.tune`). A further side is Tessera
with static batches (`bench.ablated_models`).

All four servers are up, and one at a time is asked (`bench.turns`). A side's capacity is what it
draws when all requests are sent at once, at the second time. In each round every side gets the
round's trace open-loop at shares of its own capacity, and at rates that are equal for all: shares
of the slowest one's capacity. Requests with fresh prompts get others in each pass.

A picture is in time within `--deadline`, three seconds (`bench.replay.DEADLINE_S`): about three
times what the baseline takes for one alone. Writes `bench/results/baselines.json` and
`docs/images/baselines.webp`, of other scenarios than `mixed` `baselines_SCENARIO.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import report, trace, turns
from bench.baseline_server import (
    ALONE,
    CANDIDATES,
    TUNING,
    USUAL,
    Batching,
    baseline,
    by_triton,
    tune,
)
from bench.latency import scaling
from bench.markdown import two
from bench.replay import Outcome, add_workload, draw, workload_of
from bench.senders import Things, by_client, drawn, prepare, tessera
from bench.server import ROOT
from bench.trace import Asked
from bench.turns import Quiet, Up
from tessera.contract.limits import MAX_SLOTS
from tessera_client import Client

FOLDER = ROOT / "out" / "bench-baselines"
FIGURE = ROOT / "docs" / "images" / "baselines.webp"
TESSERA, STATIC, SINGLE, BATCHED = (
    "Tessera",
    "Tessera, static batches",
    "diffusers, one at a time",
    "diffusers, static batches",
)
OWN, EQUAL = "own", "equal"
"""Loads: a share of each side's own capacity, or of the slowest one's for all."""
COMPARED = {
    "plain": Asked(0.0, 8, 1),
    "LoRA": Asked(0.0, 8, 1, loras=(0,)),
    "ControlNet": Asked(0.0, 8, 1, controls=(0,)),
    "dense edit": Asked(0.0, 8, 1, template=0, mask=0.2),
}
"""Pictures that show whether both engines do the same work."""
console = Console(highlight=False)


def main() -> None:
    """Measure, print the tables, write the report."""
    options, began = _options(), time.monotonic()
    machine = report.describe_machine(options.threads) | {"scaling": scaling(options.threads)}
    things = prepare(FOLDER, options.loras, options.templates)
    batching, candidates = _tuned(things, options) if options.tune else (USUAL, [])
    console.print(f"static batches of {batching.batch}, delay {batching.delay_ms} ms")
    results = {
        "batching": {**vars(batching), "candidates": candidates},
        **_measure(things, batching, options),
        "seconds": round(time.monotonic() - began),
    }
    _print(results)
    if options.scenario == "mixed":
        draw(latencies(results["runs"]), options.figure)
    name, settings = report_of(options.scenario), report.settings_of(options)
    file = report.write(name, settings, results, machine=machine, out=options.out)
    console.print(f"written: {file}")


def report_of(scenario: str) -> str:
    """The report's name."""
    return "baselines" if scenario == "mixed" else f"baselines_{scenario}"


def label_of(run: Mapping[str, Any]) -> str:
    """A run's name."""
    of = "its capacity" if run["load"] == OWN else "the slowest one's capacity"
    return f"{run['side']}, {run['share']:g} of {of}"


def latencies(runs: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[float]]:
    """Of all requests that had their pictures, by the name of the run."""
    return {
        label_of(run): [s for outcomes in run["latencies"] for s in outcomes if s is not None]
        for run in runs
    }


def _tuned(things: Things, options: argparse.Namespace) -> tuple[Batching, list[dict[str, Any]]]:
    """How the baseline's batches are best, on a trace of its own."""
    workload = dataclasses.replace(workload_of(options, 1.0), seed=options.seed - 1)
    with baseline(things, FOLDER, options.threads, *CANDIDATES) as ups:
        return tune(trace.make(TUNING, workload), ups, _SHARE)


def _measure(things: Things, batching: Batching, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the sides do, in turns."""
    workload = workload_of(options, 1.0)
    rounds = [
        trace.make(options.requests, dataclasses.replace(workload, seed=workload.seed + number))
        for number in range(options.rounds)
    ]
    every = [asked for requests in rounds for asked in requests]
    with contextlib.ExitStack() as stack:
        sides = {
            name: stack.enter_context(opened)
            for name, opened in _sides(things, every, batching, options.threads)
        }
        quiet = Quiet({name: side.server for name, side in sides.items()})
        differences = _differences(things, sides)
        capacity = turns.capacities(rounds[0], sides, quiet)
        loads = loads_of(capacity, options.shares, options.equal)
        found: dict[tuple[str, float], list[dict[str, list[Outcome]]]] = {}
        for number, requests in enumerate(rounds):
            for place, (load, rates) in enumerate(loads.items()):
                console.print(f"round {number + 1} of {len(rounds)}, {load}")
                fresh = trace.again(requests, 3 + place)
                outcomes = turns.replayed(fresh, rates, sides, quiet, number + place)
                found.setdefault(load, []).append(outcomes)
    runs = [
        run_of(side, load, rates[side], [each[side] for each in found[load]], options.deadline)
        for load, rates in loads.items()
        for side in sides
    ]
    return {
        "capacity": capacity,
        "differences": differences,
        "idle_cores": {name: max(cores) for name, cores in quiet.cores.items()},
        "not_quiet": quiet.given_up,
        "requests": [[dataclasses.asdict(asked) for asked in requests] for requests in rounds],
        "runs": runs,
    }


def loads_of(
    capacity: Mapping[str, float], shares: Sequence[float], equal: Sequence[float]
) -> dict[tuple[str, float], dict[str, float]]:
    """Each side's requests a second, by the load and its share."""
    slowest = min(capacity.values())
    own = {(OWN, share): {n: share * of for n, of in capacity.items()} for share in shares}
    return own | {(EQUAL, share): dict.fromkeys(capacity, share * slowest) for share in equal}


def run_of(
    side: str,
    load: tuple[str, float],
    rate: float,
    rounds: Sequence[Sequence[Outcome]],
    deadline: float,
) -> dict[str, Any]:
    """What a side did at a load, as the report has it. `latencies` are in the order of `requests`
    of the report, `null` of those that failed.
    """
    return {
        "side": side,
        "load": load[0],
        "share": load[1],
        "summary": {"rate": round(rate, 4), **turns.figures(rounds, deadline)},
        "kinds": turns.kinds(rounds),
        "edits": turns.edits(rounds),
        "latencies": [[None if o.error else round(o.latency_s, 4) for o in r] for r in rounds],
        "errors": sorted({o.error for outcomes in rounds for o in outcomes if o.error}),
    }


def _sides(
    things: Things, requests: Sequence[Asked], batching: Batching, threads: int
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Up]]]:
    """Each side's server, not yet started."""
    yield TESSERA, _tessera(things, requests, threads, "tessera", "tessera.serve")
    static = ("bench.ablated_server", "static")
    most = f"--slots={MAX_SLOTS}"
    yield STATIC, _tessera(things, requests, threads, "tessera-static", *static, flags=(most,))
    yield SINGLE, _baseline(things, threads, ALONE)
    yield BATCHED, _baseline(things, threads, batching)


@contextlib.contextmanager
def _tessera(
    things: Things,
    requests: Sequence[Asked],
    threads: int,
    name: str,
    *program: str,
    flags: Sequence[str] = (),
) -> Iterator[Up]:
    with (
        tessera(things, requests, FOLDER, threads, *flags, name=name, program=program) as server,
        by_client(server.grpc, things) as send,
    ):
        yield Up(server, send)


@contextlib.contextmanager
def _baseline(things: Things, threads: int, batching: Batching) -> Iterator[Up]:
    with baseline(things, FOLDER, threads, batching) as ups:
        yield ups[batching]


def _differences(things: Things, sides: Mapping[str, Up]) -> dict[str, dict[str, float]]:
    """How far pictures of Tessera and the baseline are apart, of 255: the largest, and the mean."""
    port, found = sides[SINGLE].server.http_port, {}
    with Client(sides[TESSERA].server.grpc, timeout=900) as client:
        for kind, asked in COMPARED.items():
            ours = np.asarray(drawn(client, things, asked, "dense").image, np.int16)
            apart = np.abs(ours - by_triton(port, ALONE.model, things, asked))
            found[kind] = {"largest": int(apart.max()), "mean": round(float(apart.mean()), 3)}
    return found


def _print(results: Mapping[str, Any]) -> None:
    shown = Table("run", "p50", "p95", "of rounds", "p95 of edits", "failed", title="seconds")
    for run in results["runs"]:
        of = run["summary"]
        edit = run["kinds"].get("edit", {})
        cells = [of["latency_s"].get("p50"), of["latency_s"].get("p95"), *of["p95_of_rounds"]]
        p50, p95, *rounds = ("-" if cell is None else two(cell) for cell in cells)
        edits = two(edit["p95"]) if "p95" in edit else "-"
        shown.add_row(label_of(run), p50, p95, " ".join(rounds), edits, str(of["failed"]))
    console.print(shown)
    for name in ("batching", "capacity", "differences", "idle_cores", "not_quiet", "seconds"):
        console.print(f"{name}: {results[name]}")


_SHARE = 0.8


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="a trace against baselines")
    add_workload(parser, requests=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=[_SHARE], help="of a capacity")
    parser.add_argument("--equal", type=float, nargs="+", default=[_SHARE], help="of the slowest's")
    parser.add_argument(
        "--tune",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="search for the baseline's best batch size and delay",
    )
    parser.add_argument("--out", type=Path, help="another file")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""What each mechanism is worth, on a trace: servers with and without it, in turns.

    python -m bench ablations [--only batching loras] [--rounds 2] [--requests 12]

All sides of an ablation are up, and idle while another has its turn (`bench.turns`). In each round
every side gets the same trace open-loop, at a share of what the slowest side draws when all
requests are sent at once. What no option of the server takes out, `bench.ablated_models` does.
Writes `bench/results/ablations.json` after each of them. What is not measured now stays there, with
its own date and command. Settings and machine are those of the last run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import report, trace, turns
from bench.latency import scaling
from bench.replay import Outcome, add_workload, workload_of
from bench.senders import Things, by_client, prepare, tessera
from bench.server import ROOT
from bench.trace import Asked
from bench.turns import Quiet, Up
from tessera.contract.limits import CPU_SLOTS, MAX_SLOTS

FOLDER = ROOT / "out" / "bench-ablations"
SMALL_GB = 0.02
"""Memory for recorded steps that holds few of a trace's recordings."""
console = Console(highlight=False)


@dataclass(frozen=True)
class Side:
    """A server and how it is asked.

    Attributes:
        flags: of `tessera-serve`.
        ablation: one of `bench.ablated_models`; "" is the product.
        mode: of edits.
    """

    flags: tuple[str, ...] = ()
    ablation: str = ""
    mode: str = "auto"

    @property
    def program(self) -> tuple[str, ...]:
        """What `python -m` is given."""
        return ("bench.ablated_server", self.ablation) if self.ablation else ("tessera.serve",)


@dataclass(frozen=True)
class Ablation:
    """Sides that are compared, the product first, on a scenario of `bench.trace`."""

    scenario: str
    sides: dict[str, Side]


_SMALL = (f"--template-memory={SMALL_GB}",)
ABLATIONS = {
    "batching": Ablation(
        "mixed",
        {
            "continuous": Side(),
            "static batches": Side((f"--slots={MAX_SLOTS}",), "static"),
            "static batches of 2": Side(("--slots=2",), "static"),
        },
    ),
    "order": Ablation(
        "mixed", {"response ratio": Side(), "by arrival": Side(ablation="by-arrival")}
    ),
    "slots": Ablation(
        "mixed",
        {
            f"--slots {number}": Side((f"--slots={number}",))
            for number in (CPU_SLOTS, 2, 4, MAX_SLOTS)
        },
    ),
    "edits": Ablation("edits", {"sparse (auto)": Side(), "dense": Side(mode="dense")}),
    "planner": Ablation(
        "edits",
        {
            "planner": Side(),
            "always cached": Side(mode="sparse"),
            "planner, little memory": Side(_SMALL),
            "always cached, little memory": Side(_SMALL, mode="sparse"),
        },
    ),
    "loras": Ablation(
        "add-ons",
        {
            "auto": Side(),
            "refit": Side(("--lora-path=refit",)),
            "side": Side(("--lora-path=side",)),
            "load and fuse": Side(("--lora-path=refit", "--adapter-memory=0"), "loras-on-time"),
        },
    ),
    "controls": Ablation(
        "add-ons", {"beside the encoder": Side(), "in line": Side(ablation="controls-in-line")}
    ),
    "read-ahead": Ablation(
        "mixed",
        {
            "read ahead": Side(_SMALL),
            "nothing ahead": Side(_SMALL, "nothing-ahead"),
        },
    ),
    "bursts": Ablation("mixed", {"bursts": Side(), "no bursts": Side(ablation="no-bursts")}),
}
"""By name."""


def main() -> None:
    """Measure, print the tables, write the report."""
    options = _options()
    machine = report.describe_machine(options.threads) | {"scaling": scaling(options.threads)}
    things = prepare(FOLDER, options.loras, options.templates)
    file = options.out
    results: dict[str, Any] = report.parsed(file.read_text())["results"] if file.exists() else {}
    settings = report.settings_of(options) | {"small_gb": SMALL_GB}
    for name in options.only:
        began = time.monotonic()
        results[name] = measure(name, things, options)
        results[name]["seconds"] = round(time.monotonic() - began)
        results[name] |= {"date": date.today().isoformat(), "command": report.command()}
        console.print(table(name, results[name]))
        kept = {each: results[each] for each in ABLATIONS if each in results}
        report.write("ablations", settings, kept, machine=machine, out=file)
    console.print(f"written: {file}")


def measure(name: str, things: Things, options: argparse.Namespace) -> dict[str, Any]:
    """All sides of an ablation, in turns."""
    ablation = ABLATIONS[name]
    rounds = [_trace(ablation, options, number) for number in range(options.rounds)]
    every = [asked for requests in rounds for asked in requests]
    with contextlib.ExitStack() as stack:
        sides = {
            side: stack.enter_context(
                _opened(f"{name}-{number}", ablation.sides[side], things, every, options)
            )
            for number, side in enumerate(ablation.sides)
        }
        quiet = Quiet({side: up.server for side, up in sides.items()})
        capacity = turns.capacities(rounds[0], sides, quiet)
        rate = options.share * min(capacity.values())
        rates = dict.fromkeys(sides, rate)
        found = [
            turns.replayed(requests, rates, sides, quiet, number)
            for number, requests in enumerate(rounds)
        ]
    of = {side: _figures([each[side] for each in found], options.deadline) for side in sides}
    return {
        "scenario": ablation.scenario,
        "rate": round(rate, 4),
        "sides": {side: {"capacity": capacity[side], **figures} for side, figures in of.items()},
        "idle_cores": {side: max(cores) for side, cores in quiet.cores.items()},
    }


def _figures(rounds: Sequence[Sequence[Outcome]], deadline: float) -> dict[str, Any]:
    every = [round(s, 4) for outcomes in rounds for s in turns.latencies(outcomes)]
    return turns.figures(rounds, deadline) | {"latencies": every}


def _trace(ablation: Ablation, options: argparse.Namespace, number: int) -> list[Asked]:
    workload = workload_of(options, 1.0)
    changed = dataclasses.replace(workload, scenario=ablation.scenario, seed=workload.seed + number)
    return trace.make(options.requests, changed)


@contextlib.contextmanager
def _opened(
    name: str, side: Side, things: Things, requests: Sequence[Asked], options: argparse.Namespace
) -> Iterator[Up]:
    with (
        tessera(
            things,
            requests,
            FOLDER,
            options.threads,
            *side.flags,
            name=name,
            program=side.program,
        ) as server,
        by_client(server.grpc, things, side.mode) as send,
    ):
        yield Up(server, send)


def table(name: str, found: dict[str, Any]) -> Table:
    """The sides, one in a row."""
    shown = Table("side", "all at once, 1/s", "p50", "p95", "of rounds", "failed", title=name)
    for side, of in found["sides"].items():
        latency, rounds = of["latency_s"], [p for p in of["p95_of_rounds"] if p is not None]
        shown.add_row(
            side,
            f"{of['capacity']:.2f}",
            *(f"{latency.get(p, 0):.2f}" for p in ("p50", "p95")),
            f"{min(rounds, default=0):.2f}-{max(rounds, default=0):.2f}",
            str(of["failed"]),
        )
    return shown


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="what each mechanism is worth, on a trace")
    add_workload(parser, requests=12)
    parser.add_argument("--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.8, help="of the slowest side's capacity")
    parser.add_argument("--out", type=Path, default=report.path_of("ablations"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""What each mechanism is worth, on a trace: servers with and without it, in turns.

    python -m bench ablations [--only batching loras] [--rounds 2] [--requests 12]

All sides of an ablation run at once, and idle while another has its turn. In each round every side
gets the same trace open-loop, at a share of what the slowest side draws when all requests are sent
at once. Who begins changes from round to round. What no option of the server takes out,
`bench.ablated_models` does. Writes `bench/results/ablations.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import report, trace
from bench.latency import scaling
from bench.replay import Outcome, add_workload, percentiles, replay, summary, workload_of
from bench.senders import Send, Things, by_client, prepare, tessera
from bench.server import ROOT
from bench.trace import Asked

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
        "mixed", {"continuous": Side(), "static batches": Side(ablation="static")}
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


@dataclass
class Measured:
    """What a side did.

    Attributes:
        capacity: pictures a second, all sent at once.
        rounds: figures of each round, see `replay.summary`.
        latencies: seconds of every request of all rounds.
    """

    capacity: float
    rounds: list[dict[str, Any]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def result(self) -> dict[str, Any]:
        """As the report has it."""
        return {
            "capacity": self.capacity,
            "latency_s": percentiles(self.latencies),
            "p95_of_rounds": [found["latency_s"].get("p95") for found in self.rounds],
            "pictures_per_s": statistics.median(found["pictures_per_s"] for found in self.rounds),
            "failed": sum(found["failed"] for found in self.rounds),
            "sparse_steps": self.rounds[0]["sparse_steps"],
            "switches": sum(found["switches"] or 0 for found in self.rounds),
            "latencies": [round(value, 4) for value in self.latencies],
        }


def main() -> None:
    """Measure, print the tables, write the report."""
    options = _options()
    machine = report.describe_machine(options.threads) | {"scaling": scaling(options.threads)}
    things = prepare(FOLDER, options.loras, options.templates)
    results: dict[str, Any] = {}
    for name in options.only:
        began = time.monotonic()
        results[name] = measure(name, things, options)
        results[name]["seconds"] = round(time.monotonic() - began)
        console.print(table(name, results[name]))
    settings = {k: v for k, v in vars(options).items() if k != "out"} | {"small_gb": SMALL_GB}
    file = report.write("ablations", settings, results, machine=machine, out=options.out)
    console.print(f"written: {file}")


def measure(name: str, things: Things, options: argparse.Namespace) -> dict[str, Any]:
    """All sides of an ablation, in turns."""
    ablation = ABLATIONS[name]
    rounds = [_trace(ablation, options, number) for number in range(options.rounds)]
    every = [asked for requests in rounds for asked in requests]
    with contextlib.ExitStack() as stack:
        sends = {
            side: stack.enter_context(
                _opened(f"{name}-{number}", ablation.sides[side], things, every, options)
            )
            for number, side in enumerate(ablation.sides)
        }
        found = {side: Measured(_capacity(rounds[0], send)) for side, send in sends.items()}
        rate = options.share * min(side.capacity for side in found.values())
        for number, requests in enumerate(rounds):
            timed, order = trace.at_rate(requests, rate), list(sends)
            for side in order[number % len(order) :] + order[: number % len(order)]:
                _add(found[side], replay(timed, sends[side]), options.deadline)
    sides = {side: measured.result for side, measured in found.items()}
    return {"scenario": ablation.scenario, "rate": round(rate, 4), "sides": sides}


def _trace(ablation: Ablation, options: argparse.Namespace, number: int) -> list[Asked]:
    workload = workload_of(options, 1.0)
    changed = dataclasses.replace(workload, scenario=ablation.scenario, seed=workload.seed + number)
    return trace.make(options.requests, changed)


@contextlib.contextmanager
def _opened(
    log: str, side: Side, things: Things, requests: Sequence[Asked], options: argparse.Namespace
) -> Any:
    with (
        tessera(
            things,
            requests,
            FOLDER,
            options.threads,
            *side.flags,
            log=log,
            program=side.program,
        ) as server,
        by_client(server.grpc, things, side.mode) as send,
    ):
        yield send


def _capacity(requests: Sequence[Asked], send: Send) -> float:
    """Pictures a second if all requests are there at once. The trace is sent twice, since first
    uses of LoRAs and sizes of batches are in the first.
    """
    at_once = [dataclasses.replace(asked, at=0.0) for asked in requests]
    replay(at_once, send)
    rate: float = summary(replay(at_once, send), deadline=0.0)["pictures_per_s"]
    return rate


def _add(measured: Measured, found: Sequence[Outcome], deadline: float) -> None:
    measured.rounds.append(summary(found, deadline))
    measured.latencies += [outcome.latency_s for outcome in found if not outcome.error]


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

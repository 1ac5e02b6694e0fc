"""Runs the fleet's simulation and draws its figures.

    python -m bench fleet

Writes `bench/results/fleet_sim.json`, `docs/images/fleet_policies.webp` and `fleet_limits.webp`. A
run takes 20 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import report
from bench.fleet_policies import POLICIES
from bench.fleet_sim import Simulation
from bench.fleet_world import World
from bench.plots import save
from bench.server import ROOT

IMAGES = ROOT / "docs" / "images"
POLICIES_FIGURE, LIMITS_FIGURE = IMAGES / "fleet_policies.webp", IMAGES / "fleet_limits.webp"
SEEDS = (1, 2, 3)
BUSY = (0.3, 0.6, 0.8, 0.9)
FEW = ("request count", "consistent hashing", "+ locality")
ALL = tuple(POLICIES)
EXPERIMENTS: dict[str, tuple[tuple[str, ...], dict[str, list[Any]], dict[str, Any]]] = {
    "nothing missing": (ALL, {"busy": [0.8, 0.9]}, {"host": 970, "read": 0.0}),
    "edits": (ALL, {"busy": list(BUSY)}, {}),
    "even popularity": (ALL, {"busy": [0.8]}, {"zipf": 0.0}),
    "LoRAs and ControlNets": (ALL, {"busy": [0.6, 0.8]}, {"edits": 0.0}),
    "half edits": (ALL, {"busy": [0.8]}, {"edits": 0.5}),
    "stale": (
        ("request count", "+ locality"),
        {"stale": [0.0, 100.0, 500.0, 2000.0, 10000.0]},
        {"routers": 4},
    ),
    "workers": (FEW, {"workers": [2, 4, 8, 16, 32]}, {}),
}
"""By name: the policies, what varies, and what else is not the default."""


def main() -> None:
    """Run, print, draw, write the report."""
    argparse.ArgumentParser(description="simulate a fleet").parse_args()
    machine = report.describe_machine(1)
    rows = [row for name in EXPERIMENTS for row in _experiment(name)]
    _print(rows)
    draw_policies(rows, POLICIES_FIGURE)
    draw_limits(rows, LIMITS_FIGURE)
    print(f"written: {report.write('fleet_sim', asdict(World()), rows, machine=machine)}")


def _experiment(name: str) -> Iterable[dict[str, Any]]:
    policies, varied, fixed = EXPERIMENTS[name]
    ((what, values),) = varied.items()
    for value in values:
        changes = {**fixed, what: value}
        changes["requests"] = max(World.requests, 300 * changes.get("workers", 8))
        for policy in policies:
            runs = [
                asdict(Simulation(World(seed=seed, **changes), POLICIES[policy]).run())
                for seed in SEEDS
            ]
            row = {"experiment": name, what: value, "policy": policy, "runs": runs}
            print(name, what, value, policy, [round(run["p95"], 2) for run in runs], flush=True)
            yield row


def _mean(row: dict[str, Any], key: str) -> float:
    return sum(run[key] for run in row["runs"]) / len(row["runs"])


def _print(rows: list[dict[str, Any]]) -> None:
    print(
        "| experiment | | policy | P50, s | P95, s (of each seed) | found |\n"
        "|---|---|---|---|---|---|"
    )
    for row in rows:
        varied = next(k for k in row if k not in ("experiment", "policy", "runs"))
        seeds = ", ".join(f"{run['p95']:.2f}" for run in row["runs"])
        print(
            f"| {row['experiment']} | {varied} {row[varied]:g} | {row['policy']} "
            f"| {_mean(row, 'p50'):.2f} | {_mean(row, 'p95'):.2f} ({seeds}) "
            f"| {_mean(row, 'found'):.0%} |"
        )


def draw_policies(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw P95 and hits over the load, a line for each policy."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    _lines(left, rows, "edits", "busy", "p95")
    left.set(xlabel="load of the workers", ylabel="P95, seconds", yscale="log")
    _lines(right, rows, "edits", "busy", "found")
    right.set(xlabel="load of the workers", ylabel="share that found everything", ylim=(0, 1))
    left.legend(fontsize=8)
    figure.suptitle("8 workers, 970 templates, 98 of them in each host's memory (simulated)")
    save(figure, path)
    plt.close(figure)


def draw_limits(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw P95 over the age of what workers tell, and over their number."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    _lines(left, rows, "stale", "stale", "p95")
    left.set_xscale("symlog", linthresh=100)
    left.set(
        xlabel="age of what workers told, ms (4 routers)", ylabel="P95, seconds", ylim=(0, None)
    )
    _lines(right, rows, "workers", "workers", "p95")
    right.set_xscale("log", base=2)
    right.set(xlabel="workers (one router)", ylabel="P95, seconds", ylim=(0, None))
    right.legend(fontsize=8)
    left.legend(fontsize=8)
    save(figure, path)
    plt.close(figure)


def _lines(axes: Any, rows: Sequence[dict[str, Any]], experiment: str, what: str, key: str) -> None:
    """A line for each policy, with the range of the seeds."""
    mine = [row for row in rows if row["experiment"] == experiment]
    for policy in dict.fromkeys(row["policy"] for row in mine):
        points = [row for row in mine if row["policy"] == policy]
        at = [row[what] for row in points]
        (line,) = axes.plot(at, [_mean(row, key) for row in points], marker="o", label=policy)
        low, high = (
            [pick(run[key] for run in row["runs"]) for row in points] for pick in (min, max)
        )
        axes.fill_between(at, low, high, alpha=0.15, color=line.get_color())


if __name__ == "__main__":
    main()

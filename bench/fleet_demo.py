"""`make fleet-demo`: two workers on the demo bundle behind one address, and a picture of who served
what and why.

    python -m bench.fleet_demo [--requests 60] [--steps 8]

Writes `out/fleet-demo/fleet.png` and `choices.json`, and ends the fleet. No Ray is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.fleet_traffic import Served, address, percentile, play, traffic, with_all, workers
from bench.plots import save
from bench.server import ROOT
from tessera.terminal.console import Console, new_table
from tessera_gateway.fleet.front import digest_of
from tests.samples.fleets import RunningFleet, fleet_of

OUT = ROOT / "out" / "fleet-demo"
TEMPLATES = 5
AT_ONCE = 6
console = Console()


@dataclass(frozen=True)
class Chosen:
    """A request, the scores of the workers when it came, and what became of it.

    Attributes:
        worker: number of the one that was chosen.
        scores: predicted milliseconds on each; `None` of one that could not be chosen.
        missing: on each, the milliseconds that the request would wait for what is not there.
    """

    kind: str
    needs: str
    worker: int
    scores: list[float | None]
    missing: list[float]
    began: float
    took_ms: float
    found: bool


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="two workers behind one address")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of a picture")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for picture and logs")
    options = parser.parse_args()
    for name in ("requests", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; accepted: 1 and above")
    console.rule("A fleet")
    found = run(options.out, requests=options.requests, steps=options.steps)
    console.print(table(found))
    draw(found, options.out / "fleet.png")
    console.say(f"{os.path.relpath(options.out / 'fleet.png')}: who served what, and why")


def run(out: Path, *, requests: int, steps: int) -> list[Chosen]:
    """Start two workers and a fleet, send the traffic, and end them."""
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with console.doing("starting two workers on the demo bundle ..."):
            started = stack.enter_context(workers(out / "workers", 2))
            servers = [address(server) for server in started]
            fleet = stack.enter_context(fleet_of(out, 2, servers=servers))
        console.say(f"the fleet is ready on {fleet.http} and {fleet.grpc}")
        asked = traffic(requests, templates=TEMPLATES, lora_sets=4)
        with console.doing(f"{requests} requests, {AT_ONCE} at a time ..."):
            served = play([fleet.http, fleet.grpc], asked, steps=steps, at_once=AT_ONCE)
        found = matched(served, choices(fleet), [each["grpc"] for each in servers])
        console.say("stopping the fleet ...")
    (out / "choices.json").write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    return found


def choices(fleet: RunningFleet) -> list[dict[str, Any]]:
    """The fleet's latest choices."""
    with urllib.request.urlopen(f"{fleet.http}/v1/fleet/choices", timeout=10) as answer:
        told: list[dict[str, Any]] = json.load(answer)
    return told


def matched(
    served: Sequence[Served], told: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[Chosen]:
    """What was served, with the choice for each, in the order of the choices.

    Args:
        served: the requests.
        told: the fleet's choices.
        names: addresses of the workers.
    """
    mine = {digest_of(each.job): each for each in served}
    found = with_all(served)
    return [
        Chosen(
            each.asked.kind,
            each.asked.needs,
            names.index(choice["worker"]),
            [choice["scores"].get(name) for name in names],
            [sum(choice["missing"].get(name, {}).values()) for name in names],
            each.began,
            each.took_ms,
            each.job in found,
        )
        for choice in told
        if (each := mine.get(choice["job"])) is not None
    ]


def table(found: Sequence[Chosen]) -> Table:
    """What each worker served."""
    columns = ("pictures", "found all", "P50, ms", "P95, ms")
    shown = new_table("worker", *columns, title="Who served what", numbers=columns)
    for worker in (0, 1):
        mine = [each for each in found if each.worker == worker]
        took = [each.took_ms for each in mine] or [0.0]
        hits = sum(each.found for each in mine)
        times = (f"{percentile(took, share):.0f}" for share in (0.5, 0.95))
        shown.add_row("AB"[worker], str(len(mine)), str(hits), *times)
    return shown


def draw(found: Sequence[Chosen], path: Path) -> None:
    """Scores at each choice, bars of who was served when, and counts by what was needed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [["scores", "needs"], ["times", "needs"]], figsize=(11, 6), layout="constrained"
    )
    _scores(axes["scores"], found)
    _times(axes["times"], found)
    _needs(axes["needs"], found)
    figure.suptitle(f"{len(found)} requests on a fleet of two workers: who served what, and why")
    save(figure, path)
    plt.close(figure)


def _scores(axes: Any, found: Sequence[Chosen]) -> None:
    """Both workers' scores of every request."""
    for number, each in enumerate(found):
        scores = {w: score / 1e3 for w, score in enumerate(each.scores) if score is not None}
        axes.plot([number] * len(scores), list(scores.values()), color="lightgrey", zorder=1)
        for worker, seconds in scores.items():
            face = f"C{worker}" if each.worker == worker else "white"
            mark = "s" if each.missing[worker] else "o"
            axes.scatter(number, seconds, 22, face, marker=mark, edgecolors=f"C{worker}", zorder=2)
    for worker in (0, 1):
        axes.scatter([], [], 22, f"C{worker}", label=f"worker {'AB'[worker]}")
    axes.scatter([], [], 22, "white", edgecolors="grey", label="not chosen")
    axes.scatter(
        [], [], 22, "white", marker="s", edgecolors="grey", label="something is missing there"
    )
    axes.set(xlabel="request", ylabel="score: seconds until it is done", yscale="log")
    for place in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        place("{x:g}")
    _legend_above(axes, columns=4)


def _times(axes: Any, found: Sequence[Chosen]) -> None:
    """A bar for each request, on its worker's rows, beside others that were under way."""
    lanes: list[list[float]] = [[], []]
    placed = []
    for each in sorted(found, key=lambda e: e.began):
        ends = lanes[each.worker]
        lane = next((i for i, end in enumerate(ends) if end <= each.began), len(ends))
        ends[lane : lane + 1] = [each.began + each.took_ms / 1e3]
        placed.append((each, lane))
    for each, lane in placed:
        row = each.worker * (len(lanes[0]) + 1) + lane
        seconds = each.took_ms / 1e3
        hatch = None if each.found else "////"
        axes.barh(row, seconds, 0.9, each.began, color=f"C{each.worker}", hatch=hatch, ec="white")
    axes.barh(0, 0, color="grey", hatch="////", ec="white", label="something was missing")
    axes.set(xlabel="seconds", ylabel="requests under way")
    axes.set_yticks([0, len(lanes[0]) + 1], ["A", "B"])
    _legend_above(axes, columns=1)


def _legend_above(axes: Any, columns: int) -> None:
    """Where it hides nothing."""
    axes.legend(fontsize=7, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def _needs(axes: Any, found: Sequence[Chosen]) -> None:
    """How many requests each worker served, by what they needed."""
    counts = Counter((each.needs, each.worker) for each in found)
    needs = sorted({need for need, _ in counts}, reverse=True)
    for row, need in enumerate(needs):
        left = 0
        for worker in (0, 1):
            width = counts[need, worker]
            axes.barh(row, width, 0.8, left, color=f"C{worker}")
            if width:
                axes.text(left + width / 2, row, width, ha="center", va="center", color="white")
            left += width
    axes.set_yticks(range(len(needs)), needs)
    axes.set(xlabel="requests", title="by what they need")


if __name__ == "__main__":
    main()

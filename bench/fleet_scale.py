"""A fleet of one to three workers under a step of load: workers, work and latency over time.

    python -m bench.fleet_scale [--clients 12] [--steps 20] [--target 1.0]

One client asks on and on, then twelve do, then one again. The number of workers follows. Clients do
not retry, so what is lost is counted. Writes `bench/results/fleet_scale.json` and
`docs/images/fleet_scale.webp`. Needs Ray.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import report
from bench.fleet_steady import Sent, counted, steady
from bench.plots import save
from bench.server import DEMO_BUNDLE, ROOT
from tests.samples.fleets import RunningFleet, fleet_of

FIGURE = ROOT / "docs" / "images" / "fleet_scale.webp"
MOST = 3
CALM_S, FULL_S = 20.0, 30.0
"""Seconds of one client before the step, and of all clients with all workers."""

SCALING = {"min": 1, "max": MOST, "up_delay": 2, "down_delay": 10}
console = Console()


@dataclass(frozen=True)
class Moment:
    """The fleet at one time.

    Attributes:
        at: seconds from the beginning.
        clients: that ask.
        live, draining: workers.
        work_s: predicted work of all workers.
        running, waiting: requests on the workers.
    """

    at: float
    clients: int
    live: int
    draining: int
    work_s: float
    running: int
    waiting: int


class Watch:
    """Looks at a fleet twice a second, in a thread."""

    def __init__(self, fleet: RunningFleet) -> None:
        self.moments: list[Moment] = []
        self.clients = 0
        self.began = time.monotonic()
        self._fleet = fleet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def wait(self, live: int) -> None:
        """Until there are so many workers, none of them draining."""
        while not self.moments or (self.moments[-1].live, self.moments[-1].draining) != (live, 0):
            if self._stop.wait(0.2) or self._fleet.process.poll() is not None:
                raise RuntimeError(self._fleet.log.read_text()[-5000:])

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            workers = self._fleet.about()["workers"]
            live = [each for each in workers if each["live"]]
            self.moments.append(
                Moment(
                    round(time.monotonic() - self.began, 2),
                    self.clients,
                    sum(not each["draining"] for each in live),
                    sum(each["draining"] for each in live),
                    round(sum(each["work_s"] for each in live), 3),
                    sum(each["running"] for each in live),
                    sum(each["waiting"] for each in live),
                )
            )


def main() -> None:
    """Run the step, print what happened, and write results and picture."""
    parser = argparse.ArgumentParser(description="a fleet under a step of load")
    parser.add_argument("--clients", type=int, default=12, help="number of clients in the step")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a picture")
    parser.add_argument(
        "--target",
        type=float,
        default=1.0,
        help="seconds of work that a worker should have: more than a picture alone takes, less "
        "than half of what the pictures of all clients take",
    )
    options = parser.parse_args()
    machine = report.describe_machine(len(os.sched_getaffinity(0)))
    scaling = SCALING | {"target_seconds": options.target}
    moments, sent, began = run(options.clients, options.steps, scaling)
    results = {
        "seen": counted(sent),
        "moments": [asdict(moment) for moment in moments],
        "sent": [pictured(each, began) for each in sent],
    }
    console.print(results["seen"])
    settings = report.settings_of(options) | {"autoscaling": scaling}
    file = report.write("fleet_scale", settings, results, machine=machine)
    draw(results, FIGURE)
    console.print(f"written: {file}, {FIGURE}")


def pictured(sent: Sent, began: float) -> dict[str, Any]:
    """A request as the report has it: seconds from the beginning."""
    times = {"began": round(sent.began - began, 3), "ended": round(sent.ended - began, 3)}
    return {**times, "error": sent.error}


def run(
    clients: int, steps: int, scaling: dict[str, Any]
) -> tuple[list[Moment], list[Sent], float]:
    """One client, so many, and one again."""
    folder = ROOT / "out" / "fleet-scale"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "bundle": str(DEMO_BUNDLE),
        "cpus": 0.5,
        "serve": ["--threads", "1"],
        "templates": str(folder / "templates"),
        "shared_templates": True,
        "autoscaling": scaling,
    }
    with fleet_of(folder, 1, **settings) as fleet:
        watch = Watch(fleet)
        with steady([fleet.http, fleet.grpc], 0, steps=steps) as traffic:
            for count, workers, seconds in (
                (1, 1, CALM_S),
                (clients, MOST, FULL_S),
                (1, 1, CALM_S),
            ):
                watch.clients = count
                traffic.clients(count)
                watch.wait(workers)
                time.sleep(seconds)
        watch.close()
        return watch.moments, traffic.sent, watch.began


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Three rows over the same time: workers, requests and work, latency."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (workers, queue, latency) = plt.subplots(
        3, 1, figsize=(9, 6), sharex=True, layout="constrained"
    )
    moments = [Moment(**of) for of in results["moments"]]
    at = [moment.at for moment in moments]
    workers.step(at, [m.live for m in moments], where="post", label="workers")
    workers.step(at, [m.draining for m in moments], ":", where="post", label="draining")
    workers.set(ylabel="workers", yticks=range(MOST + 1))
    queue.plot(at, [m.running + m.waiting for m in moments], label="requests on the workers")
    queue.plot(at, [m.work_s for m in moments], "--", label="predicted work, s")
    queue.step(at, [m.clients for m in moments], ":", where="post", label="clients")
    drawn = [of for of in results["sent"] if not of["error"]]
    latency.scatter([of["ended"] for of in drawn], [of["ended"] - of["began"] for of in drawn], 6)
    latency.set(ylabel="seconds a picture", xlabel="seconds", ylim=(0, None))
    for axes in (workers, queue):
        axes.legend(fontsize=8)
    lost = len(results["sent"]) - len(drawn)
    figure.suptitle(f"A step of load: {len(drawn)} pictures, {lost} lost")
    save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""Faults of a fleet under steady traffic: what is lost, and how long until all is well again.

    python -m bench.fleet_faults [--clients 4] [--steps 12] [--only NAME ...] [--redis HOST:PORT]

Two workers on the demo bundle, on a Ray of two nodes on loopback addresses: the head with the front
on 127.0.0.4, and a second raylet on 127.0.0.2. One after the other are killed, by SIGKILL: a
worker's tritonserver, its tessera-serve, its actor, the directory, Serve's controller, the second
node with all its processes (a third one takes its place), the front, and the GCS, which is started
again on its port. It has its memory back only if there is a Redis. Clients do not retry. Writes
`bench/results/fleet_faults.json`; faults that were not done now stay in it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from bench import report
from bench.fleet_steady import Steady, counted, steady
from bench.server import DEMO_BUNDLE, ROOT, free_ports
from tessera.terminal.console import new_table
from tests.samples.fleets import RunningFleet, fleet_of

HEAD, SECOND, THIRD = "127.0.0.4", "127.0.0.2", "127.0.0.3"  # Ray takes 127.0.0.1 for no node
WORKERS = 2
BEFORE_S, AFTER_S, AT_MOST_S = 10.0, 10.0, 240.0
"""Seconds of traffic before a fault, after all is well again, and until it is given up."""

LATE_S = {"tessera-serve": 60.0, "actor": 60.0, "controller": 30.0, "gcs": 120.0}
"""Seconds within which what was killed is missed, if not 15: Ray gives up its GCS after 60 s."""

GCS_GONE_S = 5.0
"""How long there is no GCS."""
console = Console()


@dataclass(frozen=True)
class Cluster:
    """A Ray of several nodes.

    Attributes:
        folder: Ray's; all its processes name it.
        port: of the GCS.
    """

    folder: Path
    port: int

    def start(self, host: str, cpus: int) -> None:
        """Start a node, the head on `HEAD`."""
        at = ["--head", "--port", str(self.port), "--include-dashboard=false"]
        at = at if host == HEAD else [f"--address={HEAD}:{self.port}"]
        command = [str(Path(sys.executable).with_name("ray")), "start", *at]
        command += [f"--node-ip-address={host}", f"--num-cpus={cpus}", "--disable-usage-stats"]
        command += [f"--temp-dir={self.folder}"] if host == HEAD else []
        with (self.folder.parent / "ray.log").open("ab") as sink:
            subprocess.run(command, check=True, stdout=sink, stderr=sink)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Its processes, and what they have started, whose command line has all these words."""
        every = list(psutil.process_iter(["pid", "ppid", "cmdline"]))
        lines = {p.pid: " ".join(p.info["cmdline"] or ()) for p in every}
        marks = str(self.folder.parent), f"{HEAD}:{self.port}"
        mine = {pid for pid, line in lines.items() if any(mark in line for mark in marks)}
        while more := {p.pid for p in every if p.info["ppid"] in mine} - mine:
            mine |= more
        return [p for p in every if p.pid in mine and all(w in lines[p.pid] for w in words)]

    def close(self) -> None:
        """End all of them."""
        for process in self.processes():
            if process.pid != os.getpid():
                _kill([process])


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@dataclass(frozen=True)
class Result:
    """What a fault did.

    Attributes:
        last_lost_s: from the fault to the end of the last request that was lost, if any was.
        served_s: to the first picture that was asked for after it.
        well_s: until all workers were there for good; 0 if they always were, `None` if never.
        ended: exit status of `tessera-fleet`, if it has ended by itself.
        seen: what `counted` says of all requests from the fault on.
    """

    fault: str
    last_lost_s: float | None
    served_s: float | None
    well_s: float | None
    ended: int | None
    seen: dict[str, object]


def tritonserver(cluster: Cluster, fleet: RunningFleet) -> None:
    """A worker's tritonserver ends; tessera-serve starts it again."""
    _kill(cluster.processes("tritonserver", "--model-repository")[:1])


def tessera_serve(cluster: Cluster, fleet: RunningFleet) -> None:
    """A worker's tessera-serve ends, and its tritonserver with it."""
    _kill(cluster.processes("bin/tessera-serve", f"--host {HEAD}")[:1])


def actor(cluster: Cluster, fleet: RunningFleet) -> None:
    """A worker's actor ends; its server may end what it has."""
    serve = cluster.processes("bin/tessera-serve", f"--host {HEAD}")[0]
    _kill([p for p in serve.parents() if "ray::" in " ".join(p.cmdline())][:1])


def directory(cluster: Cluster, fleet: RunningFleet) -> None:
    """The actor that knows where the workers are."""
    _kill(cluster.processes("ray::Addresses"))


def controller(cluster: Cluster, fleet: RunningFleet) -> None:
    """Ray Serve's controller."""
    _kill(cluster.processes("ray::ServeController"))


def node(cluster: Cluster, fleet: RunningFleet) -> None:
    """A machine with its worker; another one comes in its place."""
    for raylet in cluster.processes("raylet/raylet", f"--node_ip_address={SECOND}"):
        _kill([raylet, *raylet.children(recursive=True)])
    cluster.start(THIRD, 1)


def front(cluster: Cluster, fleet: RunningFleet) -> None:
    """The fleet's address; Ray Serve starts it again."""
    _kill(cluster.processes("ray::ServeReplica:tessera:Address"))


def gcs(cluster: Cluster, fleet: RunningFleet) -> None:
    """Ray's GCS, which comes back."""
    (server,) = cluster.processes("gcs/gcs_server")
    command, environment = server.cmdline(), server.environ()
    _kill([server])
    time.sleep(GCS_GONE_S)
    with (cluster.folder.parent / "gcs.log").open("wb") as sink:
        subprocess.Popen(command, env=environment, stdout=sink, stderr=sink, start_new_session=True)


FAULTS: dict[str, Callable[[Cluster, RunningFleet], None]] = {
    "tritonserver": tritonserver,
    "tessera-serve": tessera_serve,
    "actor": actor,
    "directory": directory,
    "controller": controller,
    "node": node,
    "front": front,
    "gcs": gcs,
}
"""By name, in order. The last one may end the fleet."""
REDIS = ", with Redis"
"""Behind the name of a fault of a fleet whose GCS has one."""


def main() -> None:
    """Do all faults, print a table and write the results."""
    parser = argparse.ArgumentParser(description="what a fleet loses by faults")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12, help="denoising steps of a picture")
    parser.add_argument("--redis", default="", help="HOST:PORT of a Redis for the GCS")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--out", type=Path, help="another file for the report")
    options = parser.parse_args()
    machine = report.describe_machine(len(os.sched_getaffinity(0)))
    if options.redis:
        os.environ["RAY_REDIS_ADDRESS"] = options.redis
    results = []
    for result in run(options.only, clients=options.clients, steps=options.steps):
        console.print(result)
        results.append(replace(result, fault=f"{result.fault}{REDIS}") if options.redis else result)
    console.print(table(results))
    settings = report.settings_of(options) | {"redis": bool(options.redis)}
    faults = merged(options.out or report.path_of("fleet_faults"), results)
    file = report.write("fleet_faults", settings, faults, machine=machine, out=options.out)
    console.print(f"written: {file}")


def merged(file: Path, results: list[Result]) -> list[dict[str, Any]]:
    """Rows of a report: those that its file has, and the results in their place."""
    rows = report.parsed(file.read_text())["results"] if file.exists() else []
    found = {row["fault"]: row for row in rows}
    today = date.today().isoformat()
    found |= {result.fault: {**asdict(result), "date": today} for result in results}
    return [
        found[name] for name in (*FAULTS, *(f"{name}{REDIS}" for name in FAULTS)) if name in found
    ]


def run(names: list[str], *, clients: int, steps: int) -> Iterator[Result]:
    """Do faults on one fleet, one after the other, until one ends it for good."""
    with cluster_of() as cluster, _fleet_on(cluster) as fleet:
        urls = [fleet.http, fleet.grpc]
        for name in names:
            with steady(urls, clients, steps=steps) as traffic:
                while len({each.worker for each in traffic.sent if each.worker}) < WORKERS:
                    time.sleep(0.2)  # their first pictures come after they are ready
                time.sleep(BEFORE_S)
                result = observed(name, cluster, fleet, traffic)
            yield result
            if result.well_s is None:
                break


@contextlib.contextmanager
def cluster_of() -> Iterator[Cluster]:
    """Two nodes, each with room for one worker."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-faults-"))
    (folder / "ray").mkdir()
    cluster = Cluster(folder / "ray", *free_ports(1))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        cluster.start(HEAD, 1)
        cluster.start(SECOND, 1)
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _fleet_on(cluster: Cluster) -> Iterator[RunningFleet]:
    settings = {
        "bundle": str(DEMO_BUNDLE),
        "ray": f"{HEAD}:{cluster.port}",
        "replicas": WORKERS,
        "serve": ["--threads", "1"],
        "templates": str(cluster.folder.parent / "templates"),
    }
    log = cluster.folder.parent / "fleet.log"
    try:
        with fleet_of(cluster.folder.parent, WORKERS, **settings) as fleet:
            yield fleet
    except AssertionError as error:  # the last fault may have ended it
        console.print(f"the fleet did not end well: {error}")
    finally:
        shutil.copy(log, ROOT / "out" / "fleet-faults.log")


def observed(name: str, cluster: Cluster, fleet: RunningFleet, traffic: Steady) -> Result:
    """Do a fault, and watch until all is well again."""
    at, bad, now = time.monotonic(), 0.0, 0.0
    FAULTS[name](cluster, fleet)
    while (now < LATE_S.get(name, 15.0) or now - bad < AFTER_S) and now < AT_MOST_S:
        time.sleep(0.2)
        if fleet.process.poll() is not None:
            break
        live = fleet.live()
        now = time.monotonic() - at
        if live != WORKERS:
            bad = now
    well = bad if now - bad >= AFTER_S else None
    sent = [each for each in traffic.sent if each.ended >= at]
    lost = [each.ended - at for each in sent if each.error]
    served = [each.ended - at for each in sent if each.began >= at and not each.error]
    return Result(
        name,
        max(lost, default=None),
        min(served, default=None),
        well,
        fleet.process.poll(),
        counted(sent),
    )


def table(results: list[Result]) -> Any:
    """For the docs."""
    columns = ("drawn", "lost: begun", "not begun", "last lost, s", "well after, s")
    shown = new_table("killed", *columns, title="Faults under traffic", numbers=columns)
    for each in results:
        counts = (str(each.seen[key]) for key in ("drawn", "lost_begun", "lost_not_begun"))
        times = ("-" if t is None else f"{t:.1f}" for t in (each.last_lost_s, each.well_s))
        shown.add_row(each.fault, *counts, *times)
    return shown


if __name__ == "__main__":
    main()

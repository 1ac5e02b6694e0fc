"""What locality is worth on real workers: the share of requests that find what they need.

    python -m bench.fleet_locality [--requests 200] [--rounds 3] [--steps 8]

20 templates, 6 LoRA sets and 2 ControlNets, on two workers on the demo bundle. The memory of a
worker holds some of the templates only, and one ControlNet. The product's score, round robin and
fewest requests under way take turns, on the same workers and with the same requests. All templates
are evicted before each run, and the first sixth of a run is not counted. Writes
`bench/results/fleet_locality.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from bench import report
from bench.fleet_policies import by_count
from bench.fleet_traffic import KINDS, Served, address, percentile, play, traffic, with_all, workers
from bench.server import ROOT, Server
from tessera_client import Client
from tessera_gateway.fleet.book import Book, Score
from tessera_gateway.fleet.grpc_front import GrpcFront
from tessera_gateway.fleet.load import Load
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.pool import Pool
from tessera_gateway.fleet.score import Prediction, Weights, predict
from tessera_gateway.fleet.settings import Server as Address
from tessera_gateway.settings import GatewaySettings

WORKERS, TEMPLATES, AT_ONCE = 2, 20, 6
BUDGETS = ("--template-memory=0.15", "--control-memory=0.006")
"""Of a worker, in GB: seven templates of 8 steps, and one ControlNet."""
_KNOWN_WITHIN_S = 30.0
console = Console(highlight=False)


def main() -> None:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description="locality against other policies")
    parser.add_argument("--requests", type=int, default=200, help="of a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each policy")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of a picture")
    parser.add_argument("--out", type=Path, help="another file for the report")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    machine = report.describe_machine(len(os.sched_getaffinity(0)))
    with workers(ROOT / "out" / "fleet-locality", WORKERS, *BUDGETS) as servers:
        for number in range(options.rounds):
            for policy in sorted(POLICIES, reverse=bool(number % 2)):
                _forget(servers)
                asked = traffic(options.requests, templates=TEMPLATES, seed=number + 1)
                with front(servers, POLICIES[policy]()) as url:
                    began = time.monotonic()
                    served = play([url], asked, steps=options.steps, at_once=AT_ONCE)
                    seconds = time.monotonic() - began
                runs.append({"policy": policy, "round": number, **counted(served, seconds)})
                console.print(runs[-1])
    console.print(table(runs))
    settings = report.settings_of(options)
    file = report.write("fleet_locality", settings, runs, machine=machine, out=options.out)
    console.print(f"written: {file}")


def round_robin() -> Score:
    """One after the other: a book asks for the scores of all workers, in the order of their names,
    before the next request.
    """
    calls = itertools.count()

    def score(
        load: Load, ahead: Sequence[Peek], peek: Peek, weights: Weights, *, gone: Iterable[str]
    ) -> Prediction:
        turn, worker = divmod(next(calls), WORKERS)
        return Prediction(float((worker - turn) % WORKERS))

    return score


POLICIES: dict[str, Callable[[], Score]] = {
    "locality": lambda: predict,
    "least requests": lambda: by_count,
    "round robin": round_robin,
}


@contextlib.contextmanager
def front(servers: Sequence[Server], score: Score) -> Iterator[str]:
    """A fleet's gRPC front in this process that chooses by any score; its URL.

    Raises:
        RuntimeError: it does not hear of all workers in time.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    pool: Pool = run(_pool(servers, score))
    grpc = GrpcFront(pool, None, max_body=GatewaySettings.max_body)
    try:
        port = run(grpc.start("127.0.0.1", 0))
        end = time.monotonic() + _KNOWN_WITHIN_S
        while len(pool.book.live(time.monotonic())) < len(servers):
            if time.monotonic() > end:
                raise RuntimeError(f"not all of {len(servers)} workers tell their load")
            time.sleep(0.05)
        yield f"grpc://127.0.0.1:{port}"
        run(grpc.close())
    finally:
        run(pool.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def counted(served: Sequence[Served], seconds: float) -> dict[str, Any]:
    """A run's figures, without its first sixth."""
    late, found = served[len(served) // 6 :], with_all(served)
    took = [each.took_ms for each in late]
    shares = {}
    for kind in KINDS:
        mine = [each.job in found for each in late if each.asked.kind == kind]
        shares[kind] = round(sum(mine) / len(mine), 3) if mine else None
    return {
        "found": round(sum(each.job in found for each in late) / len(late), 3),
        "found_by_kind": shares,
        "p50_ms": round(percentile(took, 0.5)),
        "p95_ms": round(percentile(took, 0.95)),
        "pictures_per_second": round(len(served) / seconds, 3),
        "busiest": max(_by_worker(late)) / len(late),
    }


def table(runs: Sequence[dict[str, Any]]) -> Table:
    """Means of the runs, with the lowest and the highest."""
    shown = Table(title="Mean of the runs (lowest to highest)")
    columns = {"found": 1, "p50_ms": 1, "p95_ms": 1, "pictures_per_second": 1}
    for name in ("policy", *columns, *(f"found: {kind}" for kind in KINDS)):
        shown.add_column(name)
    for policy in POLICIES:
        mine = [run for run in runs if run["policy"] == policy]
        cells = [_cell([run[name] for run in mine]) for name in columns]
        cells += [_cell([run["found_by_kind"][kind] for run in mine]) for kind in KINDS]
        shown.add_row(policy, *cells)
    return shown


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, low, high = sum(known) / len(known), min(known), max(known)
    return f"{mean:.4g} ({low:.4g}-{high:.4g})"


def _by_worker(served: Sequence[Served]) -> list[int]:
    ids = [each.info.worker for each in served]
    return [ids.count(one) for one in set(ids)]


async def _pool(servers: Sequence[Server], score: Score) -> Pool:
    pool = Pool(Book(Weights(), score))
    pool.have([msgspec.convert(address(server), Address) for server in servers])
    return pool


def _forget(servers: Sequence[Server]) -> None:
    """Evict every template."""
    for server in servers:
        with Client(server.http, timeout=60) as client:
            for each in client.templates()["templates"]:
                client.evict_template(each["template"])


if __name__ == "__main__":
    main()

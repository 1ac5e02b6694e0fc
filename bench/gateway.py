"""What the gateway adds to a request: the SDK and OpenAI's API in turns, on one server.

    python -m bench.gateway [--rounds 40] [--steps 20]

Both sides ask for the same picture (128 x 128). The gateway's share has the PNG file, base64, JSON
and one more connection. Also what it costs a full batch that 64 connections watch it with previews.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from bench import report
from bench.server import DEMO_BUNDLE, ROOT, SHARED, serving
from tessera.contract.limits import MAX_SLOTS
from tessera_client import Client
from tests.samples.gateways import RunningGateway, gateway
from tests.samples.jobs import wait_for_step

PROMPT = "a large red circle at the left on a blue background"
LONG = 60
"""Steps of these jobs."""
WATCHERS = 64
"""Connections that watch a full batch of MAX_SLOTS jobs, with previews."""
console = Console(highlight=False)


def main() -> None:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description="the gateway against the SDK")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each side")
    parser.add_argument("--turns", type=int, default=8, help="turns of a batch that is watched")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a picture")
    parser.add_argument(
        "--out", type=Path, default=report.path_of("gateway"), help="where to write the report"
    )
    options = parser.parse_args()
    folder = ROOT / "out"
    folder.mkdir(exist_ok=True)
    with (
        serving(DEMO_BUNDLE, folder / "bench-server.log", SHARED) as server,
        gateway(server.grpc, folder / "bench-gateway.log") as running,
        Client(server.grpc) as client,
    ):
        machine = report.describe_machine(len(os.sched_getaffinity(0)))
        results = {
            "overhead": overhead(client, running, options.rounds, options.steps),
            "watched": watched(client, running, options.turns),
        }
    console.print_json(json.dumps(results))
    settings = {name: getattr(options, name) for name in ("rounds", "turns", "steps")}
    report.write("gateway", settings, results, machine=machine, out=options.out)


def overhead(client: Client, running: RunningGateway, rounds: int, steps: int) -> dict[str, Any]:
    """Milliseconds of both sides, of their differences within a round, and of the processor time
    that the gateway uses for a request.
    """
    connection = http.client.HTTPConnection("127.0.0.1", running.port)

    def by_sdk() -> None:
        client.generate(PROMPT, seed=1, steps=steps)

    def by_gateway() -> None:
        body = json.dumps({"prompt": PROMPT, "tessera": {"seed": 1, "steps": steps}})
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/images/generations", body, headers)
        answer = connection.getresponse()
        assert json.loads(answer.read())["data"][0]["b64_json"], answer.status

    for side in (by_sdk, by_gateway):
        side()
    pairs, before = [], processor_ms(running)
    for number in range(rounds):  # who begins alternates, too
        sides = [by_sdk, by_gateway] if number % 2 else [by_gateway, by_sdk]
        took = {side: timed(side) for side in sides}
        pairs.append((took[by_sdk], took[by_gateway]))
    connection.close()
    spent = processor_ms(running) - before
    sdk, other = zip(*pairs, strict=True)
    return {
        "rounds": rounds,
        "steps": steps,
        "sdk_ms": quartiles(sdk),
        "gateway_ms": quartiles(other),
        "difference_ms": quartiles([b - a for a, b in pairs]),
        "processor_ms": round(spent / rounds, 2),
    }


def processor_ms(running: RunningGateway) -> float:
    """Processor time that the gateway has used; other load changes it little."""
    times = psutil.Process(running.process.pid).cpu_times()
    return 1e3 * float(times.user + times.system)


def timed(work: Callable[[], None]) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def quartiles(values: Any) -> list[float]:
    """The three of them."""
    return [round(value, 2) for value in statistics.quantiles(values, n=4)]


def watched(client: Client, running: RunningGateway, turns: int) -> dict[str, Any]:
    """Milliseconds of a tick of a full batch that nobody watches, and that many connections watch,
    by turns; and how many bytes they were sent.
    """
    took: dict[bool, list[float]] = {False: [], True: []}
    sent = 0
    for turn in range(2 * turns):
        by_many = bool(turn % 2)
        names = [f"watched-{turn}-{number}" for number in range(MAX_SLOTS)]
        with ThreadPoolExecutor(MAX_SLOTS + WATCHERS) as pool:
            drawn = [pool.submit(client.generate, PROMPT, steps=LONG, job_id=n) for n in names]
            for name in names:
                wait_for_step(client, name, 1)
            watchers = WATCHERS if by_many else 0
            read = [
                pool.submit(events_of, running.port, names[i % MAX_SLOTS]) for i in range(watchers)
            ]
            infos = [future.result().info for future in drawn]
            sent += sum(future.result() for future in read)
        took[by_many].append(statistics.mean(info.denoise_ms / info.ticks for info in infos))
    pairs = zip(took[False], took[True], strict=True)
    return {
        "connections": WATCHERS,
        "jobs": MAX_SLOTS,
        "steps": LONG,
        "tick_ms": quartiles(took[False]),
        "watched_tick_ms": quartiles(took[True]),
        "ratio": quartiles([b / a for a, b in pairs]),
        "bytes": sent,
    }


def events_of(port: int, job: str) -> int:
    """How many bytes the events of a job have, up to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", f"/v1/jobs/{job}/events?previews=true")
    content = connection.getresponse().read()
    connection.close()
    assert b"event: preview" in content, content[:200]
    return len(content)


if __name__ == "__main__":
    main()

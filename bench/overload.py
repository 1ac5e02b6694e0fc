"""Three times as many requests as a server can take: `python -m bench overload`.

First, as many clients as there are slots send one request after the other: that is capacity, and
its p95. Then requests come at `--times` that rate, whether or not earlier ones are answered, to a
server that lets few wait (`--max-queue`). Writes what accepted ones took, and how long it took to
refuse the others, to bench/results/overload.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.server import DEMO_BUNDLE, SHARED, serving
from tessera.contract.limits import MAX_SLOTS
from tessera.errors import TesseraError, Unavailable
from tessera_client import AsyncClient

STEPS = 20


@dataclass
class Answers:
    """Seconds that requests took, by how they ended."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    async def one(self, client: AsyncClient) -> None:
        """Send one request."""
        began = time.monotonic()
        try:
            await client.generate("a red circle", steps=STEPS, seed=1, timeout=300)
        except Unavailable:
            self.refused.append(time.monotonic() - began)
        except TesseraError as error:
            self.failed.append(str(error))
        else:
            self.accepted.append(time.monotonic() - began)


async def at_capacity(client: AsyncClient, seconds: float) -> Answers:
    """As many clients as slots, each with one request after the other."""
    answers, end = Answers(), time.monotonic() + seconds

    async def work() -> None:
        while time.monotonic() < end:
            await answers.one(client)

    await asyncio.gather(*(work() for _ in range(MAX_SLOTS)))
    return answers


async def overloaded(client: AsyncClient, rate: float, seconds: float) -> Answers:
    """Requests at a rate, evenly, whatever becomes of them."""
    answers, began = Answers(), time.monotonic()
    under_way: list[asyncio.Task[None]] = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        sending: Coroutine[Any, Any, None] = answers.one(client)
        under_way.append(asyncio.create_task(sending))
    await asyncio.gather(*under_way)
    return answers


async def measure(url: str, times: float, warm: float, seconds: float) -> dict[str, Any]:
    """Both, one after the other; see the module."""
    async with AsyncClient(url, retries=0) as client:
        await asyncio.gather(*(Answers().one(client) for _ in range(MAX_SLOTS)))
        began = time.monotonic()
        calm = await at_capacity(client, warm)
        rate = len(calm.accepted) / (time.monotonic() - began)
        storm = await overloaded(client, times * rate, seconds)
    before, during = (percentiles(answers.accepted) for answers in (calm, storm))
    return {
        "rate_at_capacity": round(rate, 3),
        "rate_sent": round(times * rate, 3),
        "seconds": seconds,
        "at_capacity": before,
        "accepted": during,
        "p95_ratio": round(during["p95_ms"] / before["p95_ms"], 3) if before and during else None,
        "refused": percentiles(storm.refused),
        "failed": storm.failed[:5],
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds, and how many there were."""
    if not seconds:
        return {}
    shares = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99, "max_ms": 100}
    named = {n: round(1e3 * float(np.percentile(seconds, s)), 1) for n, s in shares.items()}
    return {"requests": len(seconds), **named}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload")
    parser.add_argument("--warm", type=float, default=60.0, help="seconds at capacity")
    parser.add_argument("--times", type=float, default=3.0, help="what capacity is multiplied by")
    parser.add_argument("--max-queue", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="another file")
    options = parser.parse_args()
    machine = report.describe_machine(0)
    with tempfile.TemporaryDirectory() as folder:
        log, flag = Path(folder) / "log", f"--max-queue={options.max_queue}"
        with serving(DEMO_BUNDLE, log, SHARED, flag) as server:
            asked = measure(server.grpc, options.times, options.warm, options.seconds)
            result = asyncio.run(asked)
    settings = {"times": options.times, "max_queue": options.max_queue, "steps": STEPS}
    report.write("overload", settings, result, machine=machine, out=options.out)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

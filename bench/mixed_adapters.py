"""Requests with different LoRAs on a real server, by LoRA path: `refit`, `side` and `auto`.

    python -m bench.mixed_adapters
    python -m bench.mixed_adapters --blocks 1 --requests 12 --steps 10     # a short run

Requests arrive at random (Poisson), at a share of the server's capacity without LoRAs. Each has one
of 20 LoRAs, with popular ones more often (Zipf). Three servers, one per path, alternate block by
block with the same arrivals. Latency is measured from the arrival. Writes
`bench/results/mixed_adapters.json` and `docs/images/mixed_adapters.webp`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import report
from bench.lora_files import write_loras
from bench.plots import save
from bench.server import DEMO_BUNDLE, ROOT, SHARED, Server, serving
from tessera.shared.settings import LoraPath
from tessera_client import Client, Info, Lora

PROMPT = "a large red circle at the left on a blue background"
GUIDANCE = 4.0
LORAS = 20
ZIPF = 1.1
_AT_ONCE = 64
FOLDER = ROOT / "out" / "bench-adapters"
FIGURE = ROOT / "docs" / "images" / "mixed_adapters.webp"
console = Console(highlight=False)


@dataclass(frozen=True)
class Arrival:
    """A request of a block: its arrival in seconds after the block's start, its LoRA, its seed."""

    seconds: float
    lora: str
    seed: int


@dataclass
class Measured:
    """One server's answers.

    Attributes:
        latencies_ms: milliseconds from arrival to answer, for each request.
        paths: number of requests by the LoRA path they used.
        batches: mean batch of each request.
        refit_ms: milliseconds of refits, for each request.
    """

    latencies_ms: list[float] = field(default_factory=list)
    paths: dict[str, int] = field(default_factory=dict)
    batches: list[float] = field(default_factory=list)
    refit_ms: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """The latency below which this share of the requests is."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def main() -> None:
    """Measure, print the table, write the report and the figure."""
    options = _options()
    names = [f"lora-{number:02}" for number in range(LORAS)]
    write_loras(options.adapters, names, rank=options.rank)
    machine = report.describe_machine(options.threads)
    with contextlib.ExitStack() as stack:
        flags = (SHARED, f"--threads={options.threads}", f"--adapters={options.adapters}")
        servers = {
            str(path): stack.enter_context(
                serving(DEMO_BUNDLE, FOLDER / f"{path}.log", *flags, f"--lora-path={path}")
            )
            for path in LoraPath
        }
        capacity = measure_capacity(servers[LoraPath.REFIT], options.steps)
        rate = options.share * capacity
        console.print(f"capacity without LoRAs {capacity:.2f} images/s, arrivals {rate:.2f}/s")
        for server in servers.values():
            prepare(server, names, options.steps)
        found = measure(servers, names, rate, options)
    console.print(table(found))
    settings = {
        name: getattr(options, name) for name in ("steps", "share", "blocks", "requests", "rank")
    }
    settings |= {"loras": LORAS, "zipf": ZIPF, "capacity": round(capacity, 3)}
    results = {path: asdict(measured) for path, measured in found.items()}
    report.write("mixed_adapters", settings, results, machine=machine, out=options.out)
    draw(found, options.figure)
    console.print(f"written: {options.out}, {options.figure}")


def measure_capacity(server: Server, steps: int) -> float:
    """Images per second without LoRAs, with eight concurrent requests."""

    def one(seed: int) -> None:
        with Client(server.http, timeout=600) as client:
            client.generate(PROMPT, seed=seed, steps=steps, guidance=GUIDANCE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
        began = time.perf_counter()
        list(pool.map(one, range(24)))
    return 24 / (time.perf_counter() - began)


def prepare(server: Server, names: Sequence[str], steps: int) -> None:
    """Let a server read every file and open everything that it opens lazily."""
    with ThreadPoolExecutor(4) as pool, Client(server.http, timeout=600) as client:
        draws = [
            pool.submit(client.generate, PROMPT, steps=steps, guidance=GUIDANCE, loras=[Lora(name)])
            for name in names
        ]
        for drawn in draws:
            drawn.result()


def arrivals(names: Sequence[str], rate: float, count: int, seed: int) -> list[Arrival]:
    """A block of requests, determined by the seed."""
    rng, now, block = random.Random(seed), 0.0, []
    weights = [1 / (place + 1) ** ZIPF for place in range(len(names))]
    for number in range(count):
        now += rng.expovariate(rate)
        block.append(Arrival(now, rng.choices(names, weights)[0], 1000 * seed + number))
    return block


def measure(
    servers: dict[str, Server], names: Sequence[str], rate: float, options: argparse.Namespace
) -> dict[str, Measured]:
    """Run every block on every server. The first server changes from block to block."""
    found = {path: Measured() for path in servers}
    order = list(servers)
    with Progress(console=console) as progress:
        total = options.blocks * len(servers) * options.requests
        bar = progress.add_task("mixed load", total=total)
        for block in range(options.blocks):
            for path in order[block % len(order) :] + order[: block % len(order)]:
                progress.update(bar, description=f"block {block + 1}, {path}")
                arriving = arrivals(names, rate, options.requests, block)
                run_block(servers[path], arriving, options.steps, found[path])
                progress.advance(bar, options.requests)
    return found


def run_block(server: Server, block: Sequence[Arrival], steps: int, into: Measured) -> None:
    """Send each request at its arrival, without waiting for earlier ones."""
    began = time.perf_counter()

    def one(arrival: Arrival) -> tuple[float, Info]:
        time.sleep(max(0.0, arrival.seconds - (time.perf_counter() - began)))
        with Client(server.http, timeout=600) as client:
            result = client.generate(
                PROMPT,
                seed=arrival.seed,
                steps=steps,
                guidance=GUIDANCE,
                loras=[Lora(arrival.lora)],
            )
        return 1e3 * (time.perf_counter() - began - arrival.seconds), result.info

    with ThreadPoolExecutor(max(_AT_ONCE, len(block))) as pool:
        for latency, info in pool.map(one, block):
            into.latencies_ms.append(round(latency, 1))
            path = info.lora_path or "none"
            into.paths[path] = into.paths.get(path, 0) + 1
            into.batches.append(info.mean_batch)
            into.refit_ms.append(info.refit_ms)


def table(found: dict[str, Measured]) -> Table:
    """The results as a table."""
    shown = Table(title="Requests with different LoRAs: latency from arrival")
    columns = ("--lora-path", "requests", "p50 ms", "p95 ms", "mean batch", "refits ms", "used")
    for column in columns:
        side: Any = "left" if column in (columns[0], columns[-1]) else "right"
        shown.add_column(column, justify=side, no_wrap=column == columns[0])
    for path, measured in found.items():
        shown.add_row(
            path,
            str(len(measured.latencies_ms)),
            f"{measured.percentile(0.5):.0f}",
            f"{measured.percentile(0.95):.0f}",
            f"{statistics.mean(measured.batches):.1f}",
            f"{statistics.mean(measured.refit_ms):.1f}",
            ", ".join(f"{used} {count}" for used, count in sorted(measured.paths.items())),
        )
    return shown


def draw(found: dict[str, Measured], path: Path) -> None:
    """Draw the share of requests answered within a time, a curve for each server."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, measured in found.items():
        ordered = sorted(measured.latencies_ms)
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        axes.step([ms / 1e3 for ms in ordered], shares, where="post", label=name)
    axes.set(xlabel="seconds from the arrival", ylabel="share of requests answered", ylim=(0, 1))
    axes.legend(title="--lora-path")
    save(figure, path)
    plt.close(figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="requests with different LoRAs under load")
    parser.add_argument("--adapters", type=Path, default=FOLDER / "files", help="folder of LoRAs")
    parser.add_argument("--rank", type=int, default=8, help="rank of each LoRA")
    parser.add_argument("--share", type=float, default=0.7, help="load as a share of the capacity")
    parser.add_argument("--blocks", type=int, default=6, help="turns of each server")
    parser.add_argument("--requests", type=int, default=50, help="requests per block")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=report.path_of("mixed_adapters"))
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    options.adapters.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()

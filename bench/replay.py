"""Sends a trace to a server, open-loop: each request at its time, however many are under way.

    python -m bench trace [--scenario mixed] [--requests 60] [--rate 1.0] [--by sdk kserve openai]
    python -m bench trace --katz diffusion_model_request_trace.json --service B --requests 200

The same trace goes one after the other over the SDK (gRPC), the gateway's KServe port and its
OpenAI port, each time with other fresh prompts. Latency counts from the time at which a request
should have been sent. Templates are recorded and the first pictures drawn before. Writes
`bench/results/trace.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import report, trace
from bench.latency import scaling
from bench.plots import save
from bench.senders import prepare, tessera, ways
from bench.server import ROOT
from bench.trace import Asked, Workload
from tessera.contract import Info
from tessera.errors import TesseraError
from tessera_build.demo.controls import CONTROLS

FOLDER = ROOT / "out" / "bench-trace"
AT_ONCE = 256
DEADLINE_S = 3.0
"""Of a good picture: about three times what a picture of 20 steps takes alone with diffusers on two
cores (`bench/results/cpu.json`), so that it tells a long queue from a short one."""
WAYS = ("sdk", "kserve", "openai")
console = Console(highlight=False)


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        asked: the request.
        latency_s: from the time at which it should have been sent to its picture.
        info: INFO of its picture; `None` if it failed or the server has no INFO.
        error: why it failed.
    """

    asked: Asked
    latency_s: float
    info: Info | None = None
    error: str = ""


def main() -> None:
    """Replay, print the table, write the report."""
    options = _options()
    machine = report.describe_machine(options.threads) | {"scaling": scaling(options.threads)}
    things = prepare(FOLDER, options.loras, options.templates)
    requests = _trace(options)
    FOLDER.mkdir(parents=True, exist_ok=True)
    trace.save(requests, FOLDER / "trace.jsonl")
    results: dict[str, dict[str, Any]] = {}
    with tessera(things, requests, FOLDER, options.threads) as server, ways(server, things) as by:
        for number, name in enumerate(options.by):
            found = replay(trace.again(requests, number), by[name])
            results[name] = {
                "summary": summary(found, options.deadline),
                "samples": samples(found),
            }
    console.print(table({name: result["summary"] for name, result in results.items()}))
    settings = report.settings_of(options)
    file = report.write("trace", settings, results, machine=machine, out=options.out)
    console.print(f"written: {file}")


def replay(requests: Sequence[Asked], send: Callable[[Asked], Info | None]) -> list[Outcome]:
    """Send each request at its time, and wait for all pictures."""
    start = time.monotonic()

    def one(asked: Asked) -> Outcome:
        time.sleep(max(0.0, start + asked.at - time.monotonic()))
        try:
            info, error = send(asked), ""
        except (TesseraError, OSError, RuntimeError) as problem:
            info, error = None, str(problem)[:300]
        return Outcome(asked, time.monotonic() - start - asked.at, info, error)

    with ThreadPoolExecutor(min(AT_ONCE, len(requests))) as pool:
        return list(pool.map(one, requests))


def summary(outcomes: Sequence[Outcome], deadline: float) -> dict[str, Any]:
    """Figures of a replay.

    Args:
        outcomes: of all requests.
        deadline: seconds within which a picture counts as good.
    """
    done = [o for o in outcomes if not o.error]
    infos = [o.info for o in done if o.info is not None]
    took = max(o.asked.at + o.latency_s for o in outcomes) - min(o.asked.at for o in outcomes)
    good = sum(o.latency_s <= deadline for o in done)
    queues = [info.queue_ms / 1e3 for info in infos]
    ticks = sum(info.ticks for info in infos)
    return {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(done),
        "latency_s": percentiles([o.latency_s for o in done]),
        "queue_s": percentiles(queues),
        "good": round(good / len(outcomes), 4),
        "good_per_s": round(good / took, 4),
        "pictures_per_s": round(len(done) / took, 4),
        "sparse_steps": round(sum(i.sparse_ticks for i in infos) / ticks, 4) if ticks else None,
        "switches": sum(info.switches for info in infos) if infos else None,
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99; nothing without values."""
    if not values:
        return {}
    ordered = sorted(values)
    last = len(ordered) - 1
    at = {f"p{p}": ordered[min(last, int(p / 100 * len(ordered)))] for p in (50, 95, 99)}
    mean = {"mean": statistics.fmean(ordered)}
    return {name: round(value, 4) for name, value in (at | mean).items()}


def samples(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Each request, as a report has it."""
    return [
        {
            **asdict(o.asked),
            "latency_s": round(o.latency_s, 4),
            "mode": o.info.mode if o.info else None,
            "queue_ms": round(o.info.queue_ms, 1) if o.info else None,
            "error": o.error,
        }
        for o in outcomes
    ]


def table(summaries: dict[str, dict[str, Any]]) -> Table:
    """The summaries, one in a row."""
    figures = next(iter(summaries.values()))
    shown = Table("", *figures, title="a trace, open-loop")
    for name, found in summaries.items():
        shown.add_row(name, *("-" if c is None else _written(c) for c in found.values()))
    return shown


def draw(latencies: dict[str, Sequence[float]], file: Path) -> None:
    """A figure: the share of the requests that had their picture, over the time that it took."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, seconds in latencies.items():
        axes.ecdf(seconds, label=name)
    axes.set(xlabel="seconds from when it should have been sent", ylabel="share of the requests")
    axes.set_xscale("log")
    axes.legend(fontsize=8)
    save(figure, file)
    plt.close(figure)


def add_workload(parser: argparse.ArgumentParser, *, requests: int) -> None:
    """The options of a made trace."""
    known = Workload()
    parser.add_argument("--scenario", choices=trace.SCENARIOS, default=known.scenario)
    parser.add_argument("--requests", type=int, default=requests)
    parser.add_argument("--service", choices=("A", "B"), default=known.service)
    parser.add_argument("--masks", choices=("internal", "public", "try-on"), default=known.masks)
    parser.add_argument("--loras", type=int, default=known.loras)
    parser.add_argument("--templates", type=int, default=known.templates)
    parser.add_argument("--spread", type=float, default=known.spread, help="1 is Poisson")
    parser.add_argument("--steps", type=int, nargs="+", default=list(known.steps))
    parser.add_argument("--seed", type=int, default=known.seed)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, help="of a good picture, s")


def workload_of(options: argparse.Namespace, rate: float) -> Workload:
    """The made trace's workload."""
    names = ("scenario", "service", "masks", "loras", "templates", "spread", "seed")
    chosen = {name: getattr(options, name) for name in names}
    return Workload(**chosen, rate=rate, controls=len(CONTROLS), steps=tuple(options.steps))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="replay a trace, open-loop")
    add_workload(parser, requests=60)
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--by", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--katz", type=Path, help="the published trace, instead of a made one")
    parser.add_argument("--ratios", type=Path, help="masks of edits, an array in a .npy file")
    parser.add_argument("--out", type=Path, default=report.path_of("trace"))
    return parser.parse_args()


def _trace(options: argparse.Namespace) -> list[Asked]:
    if options.katz:
        found = trace.read_katz(
            options.katz,
            options.service,
            steps=options.steps[0],
            loras=options.loras,
            controls=len(CONTROLS),
        )
        found = trace.at_rate(found[: options.requests], options.rate)
    else:
        found = trace.make(options.requests, workload_of(options, options.rate))
    return trace.with_masks(found, options.ratios) if options.ratios else found


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name} {figure:.2f}" for name, figure in value.items())
    return f"{value:g}"


if __name__ == "__main__":
    main()

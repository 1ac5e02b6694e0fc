"""Where the milliseconds of a picture go, with one request at a time and with eight.

    python -m bench profile [--turns 15] [--steps 20]

The server writes its trace (`tessera-serve --trace`), and every instant of a turn is given to the
innermost of what goes on, in the order of `PARTS`: engines first, so that only what no engine
covers counts as something else. A turn is as many pictures as there are requests at once. Client
and server share the machine's monotonic clock. Writes `bench/results/profile.json` and
`docs/images/profile.webp`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import report
from bench.latency import GUIDANCE, PROMPT, scaling
from bench.plots import save
from bench.server import DEMO_BUNDLE, ROOT, SHARED, Server, serving
from tessera_client import Client

FOLDER = ROOT / "out" / "bench-profile"
FIGURE = ROOT / "docs" / "images" / "profile.webp"
AT_ONCE = (1, 8)
OUTSIDE = "HTTP, ensemble, client"
PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "UNet": (("denoise", "encoder half"), ("denoise", "decoder half")),
    "text encoder, VAE": (("encode", "engine"), ("decode", "engine")),
    "ticks: scheduler, guidance, board": (("denoise", "tick"),),
    "denoise between ticks": (("denoise", "execute"),),
    "encode: checks, tokenizer, plan": (("encode", "execute"),),
    "decode: pixels, INFO": (("decode", "execute"),),
    "calls of denoise: BLS, copies, sequences": (("render", "execute"),),
}
"""What a part's spans are: (model, name)."""
ENGINES = ("UNet", "text encoder, VAE")
console = Console(highlight=False)


@dataclass(frozen=True)
class Span:
    """One bar of a trace, in milliseconds of the monotonic clock."""

    model: str
    name: str
    began: float
    ended: float


def main() -> None:
    """Measure, print the table, write report and figure."""
    parser = argparse.ArgumentParser(description="where the milliseconds of a picture go")
    parser.add_argument("--turns", type=int, default=15, help="of each number at once")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=report.path_of("profile"))
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    machine = report.describe_machine(options.threads) | {"scaling": scaling(options.threads)}
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / "trace.json"
    flags = (SHARED, f"--threads={options.threads}", f"--trace={file}")
    with serving(DEMO_BUNDLE, FOLDER / "log", *flags) as server:
        windows = {
            count: [draw(server, count, options.steps, turn) for turn in range(options.turns + 2)]
            for count in AT_ONCE
        }
    spans = read(file.read_text())
    results = {
        f"{count} at once": [
            {part: round(ms / count, 3) for part, ms in split(spans, *window).items()}
            for window in of_count[2:]
        ]
        for count, of_count in windows.items()
    }
    console.print(table(results))
    draw_bars(results, options.figure)
    settings = {"turns": options.turns, "steps": options.steps, "at_once": AT_ONCE}
    written = report.write("profile", settings, results, machine=machine, out=options.out)
    console.print(f"written: {written}")


def draw(server: Server, count: int, steps: int, turn: int) -> tuple[float, float]:
    """Draw pictures at once; when the first was asked for and the last was there, milliseconds."""

    def one(number: int) -> None:
        client.generate(PROMPT, seed=number, steps=steps, guidance=GUIDANCE)

    with Client(server.http, timeout=600) as client, ThreadPoolExecutor(count) as pool:
        client.health()
        began = time.monotonic_ns()
        list(pool.map(one, range(turn * count, (turn + 1) * count)))
        return began / 1e6, time.monotonic_ns() / 1e6


def read(text: str) -> list[Span]:
    """The spans of a trace file, which ends in a comma."""
    events = json.loads(text.rstrip().rstrip(",") + "]")
    models = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    return [
        Span(models[e["pid"]], e["name"], e["ts"] / 1e3, (e["ts"] + e["dur"]) / 1e3)
        for e in events
        if e["ph"] == "X"
    ]


def split(spans: Iterable[Span], began: float, ended: float) -> dict[str, float]:
    """Milliseconds of each part between two instants; together they are the time between them."""
    inside = [s for s in spans if s.ended > began and s.began < ended]
    found, covered = {}, 0.0
    kinds: tuple[tuple[str, str], ...] = ()
    for part, more in PARTS.items():
        kinds += more
        now = union(
            [(s.began, s.ended) for s in inside if (s.model, s.name) in kinds], began, ended
        )
        found[part], covered = now - covered, now
    return found | {OUTSIDE: ended - began - covered}


def union(bars: Sequence[tuple[float, float]], began: float, ended: float) -> float:
    """How much of a window bars cover, wherever they overlap."""
    total, until = 0.0, began
    for first, last in sorted(bars):
        total += max(0.0, min(last, ended) - max(first, until))
        until = max(until, min(last, ended))
    return total


def medians(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each part."""
    return {part: statistics.median(turn[part] for turn in turns) for part in turns[0]}


def outside_share(turn: Mapping[str, float]) -> float:
    """What is no engine's, of a picture's time."""
    return 1 - sum(turn[part] for part in ENGINES) / sum(turn.values())


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    """Milliseconds of a picture, medians."""
    shown = Table("part", *results, title="milliseconds of a picture")
    columns = [medians(turns) for turns in results.values()]
    for part in columns[0]:
        shown.add_row(part, *(f"{column[part]:.2f}" for column in columns))
    shares = [statistics.median(map(outside_share, turns)) for turns in results.values()]
    shown.add_row("outside the engines", *(f"{share:.1%}" for share in shares))
    return shown


def draw_bars(results: Mapping[str, Sequence[Mapping[str, float]]], file: Path) -> None:
    """A figure: all parts above, those outside the engines below, on a scale of their own."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(8, 4.5), layout="constrained")
    colours = dict(zip([*PARTS, OUTSIDE], map(mpl.colormaps["tab10"], range(10)), strict=False))
    for row, parts in zip(axes, ([*PARTS, OUTSIDE], list(colours)[len(ENGINES) :]), strict=True):
        for name, turns in results.items():
            left, found = 0.0, medians(turns)
            for part in parts:
                row.barh(name, found[part], left=left, color=colours[part], label=part)
                left += found[part]
        row.invert_yaxis()
    axes[1].set(xlabel="milliseconds of a picture (below: outside the engines)")
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique, loc="outside upper center", ncols=3, fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    save(figure, file)
    plt.close(figure)


if __name__ == "__main__":
    main()

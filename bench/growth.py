"""What much of everything costs: start, lists and requests against numbers of LoRA files, of
ControlNets, of templates, of requests that wait, and of pixels.

    python -m bench growth [--runs 3] [--only loras controls]

LoRAs and ControlNets: each round starts a server for each number, in turns; the files are links to
the demo's own. Where there is a server, its memory is taken, too. Templates and waiting requests:
the server's own stores, in this process.

Writes `bench/results/growth.json` and `docs/images/growth.webp`. What is not measured now stays in
the report, with its own date, command and machine. Those of the report itself are the last run's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import report
from bench.growth_servers import Samples, of_controls, of_loras, of_sizes, timed
from bench.plots import save
from bench.server import ROOT
from tessera.shared.board import Board
from tessera.templates.keys import RecordingKey
from tessera.templates.storage import Storage
from tessera.templates.store import TemplateStore

FILES = (3, 300, 3000, 14000)
CONTROLS = (2, 10, 50)
SIDES = (64, 128, 192, 256)
"""Of square pictures, in pixels."""
TEMPLATES = (1, 100, 1000, 10000)
WAITING = (1, 16, 128, 512)
TURNS = 5
LAST = 3
"""Points of a curve that its exponent is of."""
FIGURE = ROOT / "docs" / "images" / "growth.webp"
console = Console(highlight=False)


def main() -> None:
    """Print medians, and write every sample."""
    options = _options()
    machine = report.describe_machine(0)
    results = report.read("growth")["results"] if report.path_of("growth").exists() else {}
    for what in options.only:
        results[what] = measured(what, _counts(options)[what], options.runs)
        _print(what, results[what]["numbers"])
    merged = {what: results[what] for what in KINDS if what in results}
    draw(merged, options.figure)
    settings = {"runs": options.runs, "turns": TURNS, "only": options.only} | _counts(options)
    report.write("growth", settings, merged, machine=machine, out=options.out)


def measured(what: str, counts: Sequence[int], runs: int) -> dict[str, Any]:
    """The samples of one kind, with when, how and where they were taken."""
    machine = report.describe_machine(0)
    numbers: dict[int, Samples] = {count: defaultdict(list) for count in counts}
    if what == "pixels":
        of_sizes(SIDES, numbers)
    else:
        for _ in range(runs if what in ON_SERVERS else 1):
            for count, samples in numbers.items():
                MEASURED[what](count, samples)
    return {
        "date": date.today().isoformat(),
        "command": report.command(),
        "machine": report.ended(machine),
        "numbers": {str(count): samples for count, samples in numbers.items()},
    }


def _counts(options: argparse.Namespace) -> dict[str, Sequence[int]]:
    return {
        "loras": options.files,
        "controls": options.controls,
        "templates": TEMPLATES,
        "waiting": WAITING,
        "pixels": [side * side for side in SIDES],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="cost of growth")
    parser.add_argument("--runs", type=int, default=3, help="servers for each number of files")
    parser.add_argument("--files", type=int, nargs="+", default=FILES, help="numbers of LoRA files")
    parser.add_argument("--controls", type=int, nargs="+", default=CONTROLS, help="of ControlNets")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="another file")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    return parser.parse_args()


def exponent(counts: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of a curve on logarithmic scales, by least squares over its last three points, or
    over both if it has two: 1 is linear.
    """
    points = [[math.log(value) for value in values[-LAST:]] for values in (counts, seconds)]
    return statistics.linear_regression(*points).slope


def _of_templates(count: int, samples: Samples) -> None:
    """Seconds of a store with so many recorded templates."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        key = many_templates(root, count)
        for turn in range(TURNS):
            store = TemplateStore(root, budget=1 << 60)
            timed(samples, "first list", store.recordings)
            timed(samples, "second list", store.recordings)
            timed(samples, "an edit of a known image", store.keep, picture_of(0))
            timed(samples, "of a new one", store.keep, picture_of(count + turn))
            timed(samples, "its recording found", store.find, key)


def many_templates(root: Path, count: int) -> RecordingKey:
    """Make a store whose recordings have no files; returns the key of the last one."""
    store, storage = TemplateStore(root, budget=1 << 60), Storage("float16")
    key = RecordingKey("bundle", "", "euler", 20, 0)
    for index in range(count):
        identity, _ = store.pictures.put(picture_of(index))
        key = dataclasses.replace(key, template=identity)
        folder = root / "recordings" / key.digest
        folder.mkdir()
        content = {
            "key": key.fields,
            "storage": dataclasses.asdict(storage),
            "checksums": dict.fromkeys(storage.kept(key.evaluations), (1, 1)),
        }
        (folder / "recording.json").write_text(json.dumps(content))
    return key


def picture_of(index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A picture (16, 16, 3) that no other number has."""
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[0, 0, :2] = divmod(index, 256)
    return picture


def _of_waiting(count: int, samples: Samples) -> None:
    """Seconds of a board with so many requests that wait."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        board = Board(Path(name) / "board")
        for index in range(count):
            board.open(f"job-{index}", 20)
        for turn in range(TURNS):
            job = f"another-{turn}"
            timed(samples, "check for room", board.check_room, 2 * count + TURNS)
            timed(samples, "open a job", board.open, job, 20)
            timed(samples, "status of the last", board.status, job)
            timed(samples, "load of the server", board.queued)


MEASURED: dict[str, Callable[[int, Samples], None]] = {
    "loras": of_loras,
    "controls": of_controls,
    "templates": _of_templates,
    "waiting": _of_waiting,
}
ON_SERVERS = ("loras", "controls")
KINDS = (*MEASURED, "pixels")


def draw(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A figure: seconds over numbers on logarithmic scales, and below them megabytes, from 0."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with_memory = any(is_memory(call) for of in results.values() for call in _calls(of))
    rows, columns = 1 + with_memory, len(results)
    size = (4 * columns, 4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for column, (what, of) in zip(axes.T, results.items(), strict=True):
        for each, megabytes in zip(column, (False, True), strict=False):
            calls = [call for call in _calls(of) if is_memory(call) == megabytes]
            each.set_visible(bool(calls))
            counts = [int(count) for count in of["numbers"]]
            for call in calls:
                values = [statistics.median(samples[call]) for samples in of["numbers"].values()]
                each.plot(counts, values, marker="o", markersize=3, label=call)
            each.set(xscale="log", xlabel=what, ylabel="megabytes" if megabytes else "seconds")
            each.set_xticks(counts, [f"{count:,}" for count in counts])
            each.xaxis.minorticks_off()
            if megabytes:
                each.set_ylim(bottom=0)
            else:
                each.set_yscale("log")
            if calls:
                each.legend(fontsize=7)
    figure.tight_layout()
    save(figure, file, dpi=70)
    plt.close(figure)


def is_memory(call: str) -> bool:
    """Whether samples of this name are megabytes, not seconds."""
    return call.endswith(", MB")


def _calls(of: Mapping[str, Any]) -> list[str]:
    return list(next(iter(of["numbers"].values())))


def _print(what: str, of_numbers: Mapping[str, Samples]) -> None:
    table = Table(what, *next(iter(of_numbers.values())), title="medians, seconds unless said")
    for count, samples in of_numbers.items():
        table.add_row(count, *(f"{statistics.median(v):.4f}" for v in samples.values()))
    console.print(table)


if __name__ == "__main__":
    main()

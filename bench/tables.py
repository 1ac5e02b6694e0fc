"""Tables of README and docs, rendered from the reports in `bench/results`.

    python -m bench tables

Figures are drawn from them, too (`bench.figures`).
A table stands between `<!-- table: NAME -->` and `<!-- table: end -->`. A unit test compares each
with what its reports render.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import again, against_optimum, client_alone, compiled, figures, report
from bench.baseline_tables import BASELINE_TABLES
from bench.edit_tables import EDIT_TABLES
from bench.fleet_tables import FLEET_TABLES
from bench.growth import exponent, is_memory
from bench.lora_tables import LORA_TABLES, to_diffusers
from bench.markdown import NOT_YET, if_measured, markdown, ms, speed, spread, two
from bench.sampled import quartiles_of
from bench.server import ROOT
from bench.service_tables import SERVICE_TABLES
from bench.trace_tables import TRACE_TABLES

PLACE = re.compile(r"(<!-- table: (?!end)(\S+) -->\n)(.*?)(<!-- table: end -->)", re.DOTALL)


def main() -> None:
    """Write every table into its text, and draw the figures whose results have changed."""
    for text in texts():
        before = text.read_text()
        after = rendered(before)
        if after != before:
            text.write_text(after)
            print(f"written: {text.relative_to(ROOT)}")
    for sentence in figures.redraw():
        print(sentence)


def texts() -> list[Path]:
    """The files that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(text: str) -> str:
    """A text with all of its tables as they should be.

    Raises:
        KeyError: it names a table that there is not.
    """
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[4]}", text)


def readme() -> str:
    """Pictures and edits against diffusers."""
    sdxl = report.read("edit_latency_sdxl")
    rows = [_picture_row()]
    for quality, name in (("fast", "demo"), ("balanced", "demo_balanced")):
        demo = report.read(f"edit_latency_{name}")
        for ratio in (0.02, 0.11, 0.35):
            level = _level(demo, ratio)
            task = f"sparse edit of {ratio:.0%} of it, `{quality}`".replace("%", " %")
            rows.append([task, *_edit(level), f"`{demo['command']}`", demo["date"]])
    task = "sparse edit of 20 %, SDXL's topology at half width, 512 x 512, 10 steps, random weights"
    level = _level(sdxl, 0.2)
    rows.append([task, *_edit(level, 1e3), f"`{sdxl['command']}`", sdxl["date"]])
    return markdown(("task", "Tessera", "diffusers", "ratio", "command", "measured"), rows)


def picture() -> str:
    """One picture, all turns."""
    found = report.read("cpu")["results"]["latency"]["all"]
    names = {
        "one picture through Triton over HTTP": _spread(found["server_ms"], "ms"),
        "the same by diffusers in process": _spread(found["diffusers_ms"], "ms"),
        "**ratio**": f"**{_spread(found['ratio'])}**",
        "share of the time outside the engines": _spread(found["outside_engines_share"], digits=3),
    }
    return markdown(("", ""), list(names.items()))


def load() -> str:
    """Throughput and latency by the number of requests at once."""
    levels = report.read("cpu")["results"]["load"]["grpc concurrency"]
    rows = [
        [
            f"{level['level']:g}",
            f"{level['throughput']:.2f}",
            ms(level["p50_ms"]),
            ms(level["p95_ms"]),
        ]
        for level in levels
    ]
    return markdown(("concurrency", "pictures/s", "p50", "p95"), rows)


def sparse_step() -> str:
    """One UNet step of an edit."""
    ratios = report.read("cpu")["results"]["sparse"]
    shares: dict[str, list[str]] = {}
    for each in ratios:
        step = [a + b for a, b in zip(each["run"], each["assembly"], strict=True)]
        turns = [a / b for a, b in zip(each["dense"], step, strict=True)]
        middle, eager = statistics.median(step), statistics.median(each["eager"])
        gain = statistics.median(each["dense"]) / middle
        shares.setdefault("dense / sparse", []).append(f"{gain:.1f}x")
        shares.setdefault("least and most of a turn", []).append(
            f"{min(turns):.1f}-{max(turns):.1f}"
        )
        shares.setdefault("eager diffusers / sparse", []).append(f"{eager / middle:.1f}x")
    head = ["mask", *(f"{each['ratio']:.2f}".rstrip("0") for each in ratios)]
    head = [column + "0" if column.endswith(".") else column for column in head]
    return markdown(head, [[name, *values] for name, values in shares.items()])


def traced() -> str:
    """A trace over each way to the server."""
    if (content := if_measured("trace")) is None:
        return NOT_YET.format("trace")
    rate = content["settings"]["rate"]
    rows = [
        [name, *_figures({"rate": rate, **way["summary"]})]
        for name, way in content["results"].items()
    ]
    return markdown(("way", "requests/s", *FIGURES), rows)


def edits() -> str:
    """Edits of the demo bundle by quality."""
    fast, balanced = (
        report.read(f"edit_latency_{name}")["results"]["levels"]
        for name in ("demo", "demo_balanced")
    )
    rows = []
    for level in fast:
        other = next((b for b in balanced if b["ratio"] == level["ratio"]), None)
        cells = [ms(level[f"{side}_ms"]) for side in ("diffusers", "dense", "sparse")]
        cells.append(to_diffusers(level))
        more = [ms(other["sparse_ms"]), to_diffusers(other)] if other else ["", ""]
        rows.append([f"{level['ratio']:g}", *cells, *more])
    head = ("mask", "diffusers' inpainting", "dense", "`fast`", "/ diffusers")
    return markdown((*head, "`balanced`, own prompt recorded", "/ diffusers"), rows)


def overload() -> str:
    """Three times as many requests as a server can take."""
    found = report.read("overload")["results"]
    rows = []
    for name in ("at_capacity", "accepted", "refused"):
        of = found[name]
        cells = [ms(of[f"{share}_ms"]) for share in ("p50", "p95", "p99", "max")]
        rows.append([name.replace("_", " "), f"{of['requests']}", *cells])
    return markdown(("", "requests", "p50", "p95", "p99", "longest"), rows)


def growth() -> str:
    """What more of everything costs, medians, and how each kind was measured."""
    rows = []
    for what, of in report.read("growth")["results"].items():
        rows.append([f"**{what}**", speed(of), f"`{of['command']}`", ""])
        numbers = of["numbers"]
        for call in next(iter(numbers.values())):
            medians = [statistics.median(samples[call]) for samples in numbers.values()]
            form = _megabytes if is_memory(call) else _brief
            shown = [
                f"{form(value)} at {int(n):,}" for n, value in zip(numbers, medians, strict=True)
            ]
            slope = exponent([float(count) for count in numbers], medians)
            rows.append(["", call, ", ".join(shown), f"{round(slope, 1) + 0.0:.1f}"])
    return markdown(("of what", "what", "median at each number", "exponent at the end"), rows)


FIGURES = ("p50, s", "p95, s", "in time", "pictures/s")


TABLES: dict[str, Callable[[], str]] = {
    "readme": readme,
    "picture": picture,
    "load": load,
    "sparse-step": sparse_step,
    "edits": edits,
    "overload": overload,
    "growth": growth,
    **BASELINE_TABLES,
    "trace": traced,
    **TRACE_TABLES,
    **SERVICE_TABLES,
    **FLEET_TABLES,
    **LORA_TABLES,
    **EDIT_TABLES,
    "client-alone": client_alone.table,
    "compiled": compiled.table,
    "optimum": against_optimum.table,
    "second-day": again.table,
}
"""By the name in a text."""


def _figures(summary: dict[str, Any]) -> tuple[str, ...]:
    """A replay's cells: rate and `FIGURES`."""
    latency = summary["latency_s"]
    cells = (summary["rate"], latency["p50"], latency["p95"])
    return (
        *map(two, cells),
        f"{summary['good']:.0%}".replace("%", " %"),
        two(summary["pictures_per_s"]),
    )


def _picture_row() -> list[str]:
    cpu = report.read("cpu")
    found, steps = cpu["results"]["latency"]["all"], cpu["settings"]["steps"]
    return [
        f"picture, demo model, 128 x 128, {steps} steps",
        _spread(found["server_ms"], "ms"),
        _spread(found["diffusers_ms"], "ms"),
        _spread(found["ratio"]),
        f"`{cpu['command']}`",
        cpu["date"],
    ]


def _level(content: dict[str, Any], ratio: float) -> dict[str, Any]:
    levels: list[dict[str, Any]] = content["results"]["levels"]
    return next(level for level in levels if level["ratio"] == ratio)


def _edit(level: dict[str, Any], per: float = 1.0) -> list[str]:
    """Both sides, in milliseconds or in multiples of them, and their ratio within a turn."""
    sides = [level["samples_ms"][side] for side in ("sparse", "diffusers")]
    if per == 1:
        shown = [_spread(quartiles_of(side), "ms") for side in sides]
    else:
        shown = [f"{spread([v / per for v in quartiles_of(side)])} s" for side in sides]
    return [*shown, to_diffusers(level)]


def _spread(quartiles: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """The median, with both other quartiles in brackets."""
    shown = [f"{value:.0f}" if unit else f"{value:.{digits}f}" for value in quartiles]
    return f"{shown[1]} ({shown[0]}-{shown[2]}) {unit}".rstrip()


def _brief(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.2f} ms"


def _megabytes(value: float) -> str:
    return f"{value:,.0f} MB"


if __name__ == "__main__":
    main()

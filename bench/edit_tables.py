"""Tables of the quality of edits: how near sparse ones are to dense ones. See `bench.tables`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench import report
from bench.markdown import Row, markdown, ms


def edit_loras() -> str:
    """Sparse edits with LoRAs: SSIM and tokens, by what was recorded and by the mask's ratio."""
    return markdown(*by_side(report.read("edit_loras")["results"]))


def edit_loras_each() -> str:
    """The same by LoRA, over all ratios."""
    results = report.read("edit_loras")["results"]
    return markdown(*by_side(results, "lora"))


def edit_controls() -> str:
    """Sparse edits with a ControlNet and without, as `edit_loras`."""
    results = report.read("edit_controls")["results"]
    names = {True: "with", False: "without"}
    return markdown(
        *by_side([{**m, "side": f"{names[m['control']]}, {m['side']}"} for m in results])
    )


def by_side(results: Sequence[Mapping[str, Any]], column: str = "ratio") -> tuple[Row, list[Row]]:
    """Head and rows of a table of edits: the number of cases, and for each side median SSIM, lower
    quartile and share of tokens, for each value of a column and over all.
    """
    values = sorted({m[column] for m in results})
    sides = list(dict.fromkeys(m["side"] for m in results))
    columns = [[m for m in results if m[column] == value] for value in values] + [list(results)]
    rows: list[Row] = [["cases", *(str(len(each) // len(sides)) for each in columns)]]
    for side in sides:
        of_side = [[m for m in each if m["side"] == side] for each in columns]
        rows.append([side, *map(_closeness, of_side)])
    return ("recorded", *map(str, values), "all"), rows


def _closeness(found: Sequence[Mapping[str, Any]]) -> str:
    values = sorted(m["ssim"] for m in found)
    computed = statistics.median(m["computed"] for m in found)
    return f"{statistics.median(values):.3f} ({values[len(values) // 4]:.3f}) {computed:.2f}"


def edit_policies(kind: str) -> str:
    """What each quality gives, in cases of a kind."""
    results = report.read("edit_policies")["results"]
    return markdown(*by_side([m for m in results if m["kind"] == kind]))


def edit_policies_times() -> str:
    """What each quality takes by the mask's ratio, medians: milliseconds of denoising, and how many
    times as long the dense edit of the same case took.
    """
    results = report.read("edit_policies")["results"]
    ratios = sorted({m["ratio"] for m in results})
    sides = list(dict.fromkeys(m["side"] for m in results))
    columns = [[m for m in results if m["ratio"] == ratio] for ratio in ratios] + [results]
    dense = [statistics.median(m["dense_ms"] for m in each) for each in columns]
    rows: list[Row] = [["dense", *map(ms, dense)]]
    for side in sides:
        cells = [_times([m for m in each if m["side"] == side]) for each in columns]
        rows.append([side, *cells])
    return markdown(("recorded", *map(str, ratios), "all"), rows)


def _times(found: Sequence[Mapping[str, Any]]) -> str:
    faster = statistics.median(m["dense_ms"] / m["sparse_ms"] for m in found)
    return f"{ms(statistics.median(m['sparse_ms'] for m in found))}, {faster:.2f}"


LATENCIES = {"fast": "edit_latency_demo", "balanced": "edit_latency_demo_balanced"}
"""Reports of edits through Triton, by quality."""
README_RATIOS = (0.02, 0.11, 0.35)
"""Those of the README's table."""


def edits_to_dense() -> str:
    """Sparse edits beside Tessera's own dense ones, each in its own run, and what `auto` did."""
    rows: list[Row] = []
    for quality, name in LATENCIES.items():
        for level in report.read(name)["results"]["levels"]:
            cells = [ms(level[f"{way}_ms"]) for way in ("dense", "sparse")]
            faster = f"{level['dense_ms'] / level['sparse_ms']:.2f}"
            auto = f"{ms(level['auto_ms'])}, {level['auto_mode']}"
            rows.append([f"`{quality}`", f"{level['ratio']:g}", *cells, faster, auto])
    return markdown(("quality", "mask", "dense", "sparse", "dense / sparse", "`auto`"), rows)


def readme_dense() -> str:
    """The same in words, for the masks of the README's table, in their order."""
    said, slower = [], []
    for quality, name in LATENCIES.items():
        levels = report.read(name)["results"]["levels"]
        shown = [level for level in levels if level["ratio"] in README_RATIOS]
        times = [f"{level['dense_ms']:.0f}" for level in shown]
        said.append(f"{', '.join(times[:-1])} and {times[-1]} ms in the run of `{quality}`")
        slower += [
            f" Sparse edits of {level['ratio']:.0%} with `{quality}` were slower. ".replace(
                "%", " %"
            )
            + f"There, `auto`, the default mode, was {level['auto_mode']}."
            for level in shown
            if level["sparse_ms"] > level["dense_ms"]
        ]
    return f"Tessera's own dense edits took {', '.join(said)}.{''.join(slower)}"


def edit_quality() -> str:
    """Ways of before: median SSIM by ratio, and the share of attributes that are right."""
    results = report.read("edit_quality")["results"]
    ratios = sorted({m["ratio"] for m in results})
    rows: list[Row] = []
    for way in dict.fromkeys(m["way"] for m in results):
        of_way = [m for m in results if m["way"] == way]
        found = [[m["ssim"] for m in of_way if m["ratio"] == ratio] for ratio in ratios]
        right = 100 * statistics.mean(m["checked"] for m in of_way)
        rows.append([way, *(f"{statistics.median(v):.3f}" for v in found), f"{right:.0f} %"])
    return markdown(("ratio", *(f"{ratio:g}" for ratio in ratios), "right"), rows)


def edit_policies_grid() -> str:
    """Other ways to edit: median SSIM (lowest) by ratio."""
    results = report.read("edit_policies_grid")["results"]
    ratios = sorted({m["ratio"] for m in results})
    rows: list[Row] = []
    for side in dict.fromkeys(m["side"] for m in results):
        of_side = [m for m in results if m["side"] == side]
        found = [[m["ssim"] for m in of_side if m["ratio"] == ratio] for ratio in ratios]
        rows.append([side, *(f"{statistics.median(v):.3f} ({min(v):.3f})" for v in found)])
    return markdown(("", *(f"{ratio:g}" for ratio in ratios)), rows)


EDIT_TABLES: dict[str, Callable[[], str]] = {
    "edit-loras": edit_loras,
    "edit-loras-each": edit_loras_each,
    "edit-controls": edit_controls,
    "edit-policies-fresh": lambda: edit_policies("fresh"),
    "edit-policies-held-out": lambda: edit_policies("held-out"),
    "edit-policies-times": edit_policies_times,
    "edits-to-dense": edits_to_dense,
    "readme-dense": readme_dense,
    "edit-policies-grid": edit_policies_grid,
    "edit-quality": edit_quality,
}
"""By the name in a text."""

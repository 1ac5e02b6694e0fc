"""Tables of the quality of edits: how near sparse ones are to dense ones. See `bench.tables`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench import report
from bench.markdown import Row, markdown


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
    "edit-policies-grid": edit_policies_grid,
    "edit-quality": edit_quality,
}
"""By the name in a text."""

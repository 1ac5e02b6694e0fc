"""What a probe found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from tessera.edits.measured import Measured
from tessera.templates.nearest import NEAR
from tessera.terminal.console import new_table


def probe_tables(found: Measured) -> Iterator[Table]:
    """Where the error of edits arises, and what each EDIT_QUALITY does about it."""
    rows = [(row.nearness, f"{row.share:g}", row) for row in found.errors]
    margins, every = found.errors[0].by_margin, found.errors[0].left_by_every
    yield _numbers(
        "1 - SSIM by margin",
        ("recorded", "mask", *margins),
        [(n, share, *(f"{e:.3f}" for e in row.by_margin.values())) for n, share, row in rows],
    )
    yield _numbers(
        "the share of it that is left with a dense fifth of the steps, or every n-th dense",
        ("recorded", "mask", *"12345", *(f"n = {n}" for n in every)),
        [
            (n, share, *(f"{e:.2f}" for e in (*row.left_by_fifth, *row.left_by_every.values())))
            for n, share, row in rows
        ],
    )
    table = new_table("quality", "recorded", "mask", "SSIM", "policies", numbers=("mask", "SSIM"))
    for (quality, nearness), reached in found.reached.items():
        expected = found.expected[quality, nearness]
        for (limit, policies), value in zip(reached, expected, strict=True):
            shown = "; ".join(map(str, policies)) or "dense edits only"
            table.add_row(quality, nearness, f"{limit:g}", f"{value or 1:.3f}", shown)
    yield table
    yield _numbers(
        f"distance of prompts; recordings up to {NEAR:g} are taken to be near",
        ("the edit's from", "least", "median", "most"),
        [(kind, *(f"{d:.2f}" for d in apart)) for kind, apart in found.how["distances"].items()],
    )


def _numbers(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = new_table(*columns, title=title, numbers=columns[1:])
    for row in rows:
        table.add_row(*row)
    return table

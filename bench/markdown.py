"""What tables of `bench.tables` are written with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench import report

Row = Sequence[str]
NOT_YET = "`python -m bench {}` has not been run on a quiet machine yet."


def markdown(head: Row, rows: Sequence[Row]) -> str:
    """A table."""
    lines = [head, *rows]
    first, *others = [f"| {' | '.join(line)} |".replace("  ", " ") for line in lines]
    return "\n".join([first, f"|{'---|' * len(head)}", *others])


def if_measured(name: str) -> dict[str, Any] | None:
    """A report, if there is one."""
    return report.read(name) if report.path_of(name).exists() else None


def by_command(content: Mapping[str, Any], table: str) -> str:
    """A table of a report, and below it when it was measured and by which command."""
    return f"{table}\n\n`{content['command']}`, {content['date']}."


def two(value: float) -> str:
    """Two digits behind the point."""
    return f"{value:.2f}"


def ms(value: float) -> str:
    """Whole milliseconds."""
    return f"{value:.0f} ms"


def spread(quartiles: Sequence[float], digits: int = 1) -> str:
    """The median, with both other quartiles in brackets."""
    low, middle, high = (f"{value:.{digits}f}" for value in quartiles)
    return f"{middle} ({low}-{high})"


def speed(run: Mapping[str, Any]) -> str:
    """When a run was, and how fast its machine: milliseconds of the calibrating product with one
    and with two threads, before the run and after it.
    """
    product = run["machine"].get("product_ms")
    if product is None:
        return f"{run['date']}, speed not recorded"
    shown = ", then ".join(
        " and ".join(f"{ms:.0f}" for ms in product[when].values())
        for when in ("before", "after")
        if when in product
    )
    return f"{run['date']}, product {shown} ms"

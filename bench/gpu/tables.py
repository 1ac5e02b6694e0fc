"""Plain text tables of rows that are dictionaries. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def render(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A title, a line of column names, and a line for each row; numbers stand to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_text(row.get(name, "")) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    numeric = [all(isinstance(row.get(name, 0), int | float) for row in rows) for name in names]

    def line(words: Sequence[str]) -> str:
        placed = [
            word.rjust(width) if right else word.ljust(width)
            for word, width, right in zip(words, widths, numeric, strict=True)
        ]
        return "  ".join(placed).rstrip()

    return "\n".join([title, line(names), line(["-" * w for w in widths]), *map(line, cells)])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)

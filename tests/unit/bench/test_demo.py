"""The table of `make demo` on a narrow terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from bench.demo import add_times, times_table
from tessera.terminal.console import Console


def test_the_table_fits_80_columns() -> None:
    times = dict.fromkeys(
        ("encode_ms", "queue_ms", "denoise_ms", "decode_ms", "total_ms"), 123456.7
    )
    result: Any = SimpleNamespace(info=SimpleNamespace(mean_batch=12.3, **times))
    table = times_table()
    for name in ("dpmpp_2m_karras", "eight with ControlNets"):
        add_times(table, name, [result, result], 123_456.7)
    console, written = Console(), io.StringIO()
    console.file, console.width = written, 80
    console.print(table)
    lines = written.getvalue().splitlines()
    assert len(lines) == 4, "no cell is wrapped"
    assert "…" not in written.getvalue()
    assert lines[1].split() == [
        "request",
        "encode",
        "queue",
        "denoise",
        "decode",
        "each",
        "batch",
        "wall",
    ]
    assert lines[3].split()[-7:] == [*["123457"] * 5, "12.3", "123457"]

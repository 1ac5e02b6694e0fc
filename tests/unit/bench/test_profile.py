"""Profiles: every instant belongs to one part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench.profile import ENGINES, OUTSIDE, PARTS, Span, draw_bars, outside_share, read, split

SPANS = [
    Span("render", "execute", 10, 90),
    Span("denoise", "execute", 20, 80),
    Span("denoise", "tick", 22, 50),
    Span("denoise", "encoder half", 25, 35),
    Span("denoise", "decoder half", 35, 48),
    Span("encode", "execute", 30, 45),  # another request's, while the UNet runs
    Span("decode", "execute", 90, 96),
    Span("decode", "engine", 91, 95),
    Span("denoise", "tick", 200, 300),  # of another turn
]


def test_the_innermost_counts_and_engines_come_first() -> None:
    found = split(SPANS, 0, 100)
    first, second, ticks, between, encode, decode, calls = (found[part] for part in PARTS)
    assert (first, second) == (23, 4)
    assert (ticks, between, encode, decode) == (5, 32, 0, 2)
    assert calls == 20
    assert found[OUTSIDE] == 14
    assert sum(found.values()) == 100
    assert outside_share(found) == pytest.approx(0.73)


def test_a_trace_is_read_as_the_server_writes_it() -> None:
    name = {"name": "process_name", "ph": "M", "pid": 7, "args": {"name": "denoise"}}
    bar = {"name": "tick", "ph": "X", "ts": 2e3, "dur": 1e3, "pid": 7, "tid": 1, "args": {}}
    text = "[\n" + "".join(f"{json.dumps(event)},\n" for event in (name, bar))
    assert read(text) == [Span("denoise", "tick", 2.0, 3.0)]


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    turn = split(SPANS, 0, 100)
    draw_bars({"1 at once": [turn], "8 at once": [turn, turn]}, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 500
    assert set(ENGINES) < set(PARTS)

"""What the benches of faults and of scaling count, and the latter's picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from bench.fleet_faults import FAULTS, Result, table
from bench.fleet_scale import Moment, draw
from bench.fleet_steady import Sent, counted

DRAWN = Sent(10.0, 12.0, begun=True, worker="a")
LOST = Sent(10.0, 11.0, "Unavailable", "the worker is gone", begun=True)
MOMENTS = [
    Moment(at, clients, live, 0, 1.0, clients, 0)
    for at, clients, live in ((0.0, 1, 1), (5.0, 12, 1), (9.0, 12, 3), (20.0, 1, 2))
]


def test_lost_requests_are_told_apart_by_whether_they_had_begun() -> None:
    waited = replace(LOST, begun=False, error="TimedOut", sentence="too late")
    assert counted([DRAWN, DRAWN, LOST, waited, waited]) == {
        "drawn": 2,
        "lost_begun": 1,
        "lost_not_begun": 2,
        "errors": {"Unavailable": 1, "TimedOut": 2},
        "sentences": ["the worker is gone", "too late"],
    }


def test_pictures_and_tables(tmp_path: Path) -> None:
    draw(MOMENTS, [DRAWN, LOST], 0.0, tmp_path / "scale.png")
    with Image.open(tmp_path / "scale.png") as image:
        assert image.width > 500
    results = [Result(name, None, 1.0, 2.0, None, counted([DRAWN, LOST])) for name in FAULTS]
    assert table(results).row_count == len(FAULTS)

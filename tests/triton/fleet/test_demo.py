"""`make fleet-demo` with few requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.fleet_demo import draw, run, table


@pytest.mark.usefixtures("bundle")
def test_the_demo_tells_who_served_what_and_why(tmp_path: Path) -> None:
    found = run(tmp_path, requests=12, steps=2)
    assert len(found) == len(json.loads((tmp_path / "choices.json").read_text())) == 12
    assert {each.worker for each in found} <= {0, 1}
    for each in found:  # a busy machine may keep a worker from being looked at
        scores = [score for score in each.scores if score is not None]
        assert each.scores[each.worker] == min(scores) > 0
    assert len({each.needs for each in found}) > 3
    assert len(table(found).rows) == 2
    draw(found, tmp_path / "fleet.png")
    assert (tmp_path / "fleet.png").stat().st_size > 10_000

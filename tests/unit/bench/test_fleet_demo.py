"""What the benches of real fleets count, and the demo's picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.fleet_demo import Chosen, draw, matched
from bench.fleet_traffic import KINDS, Asked, Served, percentile, spread, traffic
from bench.plots import COLOURS
from tessera_client import Info
from tessera_gateway.fleet.front import digest_of

INFO = Info(
    job_id="a", seed=1, steps=2, width=8, height=8, scheduler="euler", encode_ms=1, decode_ms=1,
    total_ms=3, mode="sparse",
)  # fmt: skip
EDIT = Asked("edit", template=0, side=8)


def test_traffic_is_a_mix_in_a_random_order() -> None:
    asked = traffic(400, templates=3, lora_sets=2)
    assert asked == traffic(400, templates=3, lora_sets=2) != traffic(400, templates=3, seed=2)
    counts = Counter(each.kind for each in asked)
    for kind, share in KINDS.items():
        assert counts[kind] / 400 == pytest.approx(share, abs=0.1)
    needs = Counter(each.needs for each in asked)
    assert set(needs) == {
        *(f"template {n}" for n in (1, 2, 3)), "outline", "halved", "edges", "silhouette", "nothing"
    }  # fmt: skip
    assert needs["template 1"] > needs["template 3"]


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    asked = spread(traffic(1000, templates=3), 20.0)
    assert asked[-1].at == pytest.approx(50, rel=0.15)
    assert [replace(each, at=0.0) for each in asked] == traffic(1000, templates=3)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"mode": "dense"}, False),
        ({"cache_load_ms": 500.0}, False),
        ({"control_load_ms": 500.0}, False),
        ({"switches": 1}, False),
    ],
    ids=["all", "no recording", "recording read", "ControlNet loaded", "refit"],
)
def test_what_a_request_found(changes: dict[str, Any], found: bool) -> None:
    assert Served(EDIT, "a", replace(INFO, **changes), 0.0, 3.0).found is found


def test_requests_are_matched_with_the_choices_for_them() -> None:
    told: list[dict[str, Any]] = [
        {"job": digest_of(job), "worker": worker, "scores": {"x": 1.0, "y": 2.0}, "missing": lacks}
        for job, worker, lacks in (
            ("b", "y", {"x": {}, "y": {"read": 5.0, "files": 1.0}}),
            ("strange", "x", {"x": {}, "y": {}}),
            ("a", "x", {"x": {}, "y": {}}),
        )
    ]
    served = [Served(EDIT, job, INFO, 0.5, 3.0) for job in ("a", "b")]
    second, first = matched(served, told, ["x", "y"])
    assert (first.worker, first.scores, first.missing) == (0, [1.0, 2.0], [0.0, 0.0])
    assert (second.worker, second.missing) == (1, [0.0, 6.0])


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    found = [
        Chosen("edit", "template 1", n % 2, [n + 1.0, 2.0], [0.0, n * 1.0], n / 9, 400.0, n > 0)
        for n in range(6)
    ]
    draw(found, tmp_path / "fleet.png")
    with Image.open(tmp_path / "fleet.png") as image:
        assert image.size == (1210, 660)
        assert 20 < len(image.convert("RGB").getcolors(10**6) or ()) <= COLOURS


def test_percentiles() -> None:
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]

"""Replays: open-loop, and what is made of their outcomes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from PIL import Image

from bench.replay import Outcome, draw, percentiles, replay, summary
from bench.trace import Asked
from tessera.contract import Info

FIRST, SECOND = Asked(0.0, 8, 1), Asked(0.05, 8, 2)


def info(**values: object) -> Info:
    known = {"job_id": "j", "seed": 1, "steps": 8, "width": 128, "height": 128}
    known |= {"scheduler": "ddim", "encode_ms": 1.0, "decode_ms": 1.0, "total_ms": 2.0}
    return Info(**(known | values))  # type: ignore[arg-type]


def test_a_request_is_sent_while_the_one_before_is_under_way() -> None:
    second = threading.Event()

    def send(asked: Asked) -> Info:
        if asked is FIRST:
            assert second.wait(30)
        else:
            second.set()
        return info()

    found = replay([FIRST, SECOND], send)
    assert [outcome.error for outcome in found] == ["", ""]
    assert found[0].latency_s >= SECOND.at


def test_a_failure_is_counted_and_ends_nothing() -> None:
    def send(asked: Asked) -> Info:
        if asked is FIRST:
            raise RuntimeError("no")
        return info()

    found = summary(replay([FIRST, SECOND], send), deadline=1e9)
    assert (found["requests"], found["failed"], found["good"]) == (2, 1, 0.5)


def test_figures() -> None:
    """A deadline counts from when the request should have been sent, and failures are not good."""
    outcomes = [
        Outcome(Asked(0.0, 8, 1), 1.0, info(ticks=8, queue_ms=100.0, switches=1)),
        Outcome(Asked(2.0, 8, 2), 8.0, info(ticks=8, sparse_ticks=4, queue_ms=300.0)),
        Outcome(Asked(3.0, 8, 3), 1.0, None, "lost"),
    ]
    found = summary(outcomes, deadline=5.0)
    assert found["latency_s"] == {"p50": 8.0, "p95": 8.0, "p99": 8.0, "mean": 4.5}
    assert found["queue_s"]["mean"] == pytest.approx(0.2)
    assert found["good"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["pictures_per_s"] == 0.2  # two in ten seconds
    assert (found["sparse_steps"], found["switches"]) == (0.25, 1)
    without = summary([Outcome(Asked(0.0, 8, 1), 1.0)], deadline=5.0)  # a server without INFO
    assert (without["sparse_steps"], without["switches"], without["queue_s"]) == (None, None, {})


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    draw({"one side": [1.0, 2.0], "another": [3.0]}, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 500


def test_percentiles() -> None:
    assert percentiles([]) == {}
    found = percentiles(list(range(100)))
    assert (found["p50"], found["p95"], found["p99"]) == (50, 95, 99)

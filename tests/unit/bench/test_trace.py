"""Traces: of published workloads, the same at every run, and read from published files."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import trace, workloads
from bench.trace import Asked, Workload

MANY = 4000


def test_a_trace_is_the_same_every_time_and_survives_its_file(tmp_path: Path) -> None:
    made = trace.make(50, Workload(seed=3))
    assert made == trace.make(50, Workload(seed=3)) != trace.make(50, Workload(seed=4))
    trace.save(made, tmp_path / "trace.jsonl")
    assert trace.load(tmp_path / "trace.jsonl") == made
    old = {
        "at": 1.0,
        "steps": 8,
        "seed": 2,
        "loras": [1],
        "controls": [],
        "template": 3,
        "mask": 0.5,
    }
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n")  # from before there were prompts
    assert trace.load(tmp_path / "old.jsonl") == [Asked(1.0, 8, 2, (1,), (), 3, 0.5, prompt=0)]
    (tmp_path / "other.jsonl").write_text('{"at": 1}\n')
    with pytest.raises(ValueError, match=r"other\.jsonl, line 1: "):
        trace.load(tmp_path / "other.jsonl")


def test_add_ons_are_as_many_as_published() -> None:
    """Service B of Katz: 98 % have some; the first ControlNets are the popular ones."""
    made = trace.make(MANY, Workload("add-ons", loras=7000, controls=47))
    for field, shares in workloads.COUNTS["B"].items():
        counts = [len(getattr(asked, field)) for asked in made]
        for number, share in enumerate(shares):
            assert counts.count(number) / MANY == pytest.approx(share, abs=0.03), (field, number)
    ranks = [rank for asked in made for rank in asked.controls]
    assert sum(rank < 5 for rank in ranks) / len(ranks) > 0.9
    popular = [rank for asked in made for rank in asked.loras]
    assert sum(rank < 1000 for rank in popular) / len(popular) == pytest.approx(0.74, abs=0.05)


def test_most_prompts_are_fresh_and_the_others_popular() -> None:
    prompts = [asked.prompt for asked in trace.make(MANY, Workload("text"))]
    fresh = [prompt for prompt in prompts if prompt >= trace.PROMPTS]
    assert len(fresh) / MANY == pytest.approx(workloads.FRESH_PROMPTS, abs=0.03)
    assert len(set(fresh)) == len(fresh)
    known = [prompt for prompt in prompts if prompt < trace.PROMPTS]
    assert set(known) == set(range(trace.PROMPTS))
    assert known.count(0) > 5 * known.count(trace.PROMPTS - 1)


def test_a_further_pass_has_other_fresh_prompts_and_is_the_same_otherwise() -> None:
    made = trace.make(200, Workload())
    passes = [made, trace.again(made, 1), trace.again(made, 2)]
    assert trace.again(made, 0) == made
    for before, after in itertools.combinations(passes, 2):
        for one, other in zip(before, after, strict=True):
            assert (one.prompt == other.prompt) == (one.prompt < trace.PROMPTS)
            assert one.seed != other.seed
            assert replace(other, seed=one.seed, prompt=one.prompt) == one


def test_fewer_things_are_the_popular_ones() -> None:
    made = trace.make(200, Workload("add-ons", loras=3, controls=1))
    assert {rank for asked in made for rank in asked.loras} == {0, 1, 2}
    assert {asked.controls for asked in made} == {(), (0,)}


@pytest.mark.parametrize(
    ("masks", "mean"), [("internal", 0.11), ("public", 0.19), ("try-on", 0.35)]
)
def test_masks_are_as_large_as_published(masks: str, mean: float) -> None:
    made = trace.make(MANY, Workload("edits", masks=masks))
    ratios = [asked.mask for asked in made]
    assert statistics.fmean(ratios) == pytest.approx(mean, abs=0.02)
    assert 0 < min(ratios) <= max(ratios) <= 1


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_arrivals_have_the_wanted_rate_and_bursts(spread: float) -> None:
    times = workloads.arrivals(20_000, 2.0, random.Random(1), spread=spread)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.5, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(spread, rel=0.1)


def test_a_trace_at_another_rate() -> None:
    made = trace.make(100, Workload())
    faster = trace.at_rate(made, 4.0)
    assert len(faster) / faster[-1].at == pytest.approx(4.0, rel=1e-3)
    assert [asked.seed for asked in faster] == [asked.seed for asked in made]


def test_the_published_trace_of_katz(tmp_path: Path) -> None:
    entries = [
        {"scene_id": "A", "timestamp": 1714521602500, "controlnets": ["x", "y"], "loras": None},
        {"scene_id": "A", "timestamp": 1714521600000, "controlnets": ["y"], "loras": ["m", "n"]},
        {"scene_id": "B", "timestamp": 1714521600000, "controlnets": None, "loras": ["m"]},
    ]
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(entries))
    first, second = trace.read_katz(file, "A", steps=20, loras=5, controls=2)
    assert (first.at, first.loras, first.controls) == (0.0, (0, 1), (0,))
    assert (second.at, second.loras, second.controls) == (2.5, (), (0, 1))
    assert first.prompt != second.prompt
    (entry,) = trace.read_katz(file, "B", steps=20, loras=5, controls=2)
    assert (entry.steps, entry.controls) == (20, ())
    with pytest.raises(ValueError, match="service is 'C'; accepted: A, B, with entries"):
        trace.read_katz(file, "C", steps=20, loras=5, controls=2)
    file.write_text("[{}]")
    with pytest.raises(ValueError, match=r"trace\.json is not Katz's trace: KeyError"):
        trace.read_katz(file, "A", steps=20, loras=5, controls=2)


def test_masks_of_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "ratios.npy", np.array([0.25, 0.5]))
    made = trace.make(40, Workload("mixed"))
    masked = trace.with_masks(made, tmp_path / "ratios.npy")
    assert {asked.mask for asked in masked if asked.template is not None} == {0.25, 0.5}
    assert {asked.mask for asked in masked if asked.template is None} == {0.0}
    np.save(tmp_path / "ratios.npy", np.array([[2.0]]))
    with pytest.raises(ValueError, match=r"an array of \(1, 1\); accepted: ratios from 0 to 1"):
        trace.with_masks(made, tmp_path / "ratios.npy")

"""What the simulation is told of a real fleet, and how both are compared."""

from __future__ import annotations

import argparse
import statistics

import pytest

from bench.fleet_traffic import Asked
from bench.fleet_validate import SIDES, Costs, compared, simulated, workload

COSTS = Costs(
    overhead=5.0,
    dense=20.0,
    sparse={side: side / 10 for side in SIDES},
    beside={"plain": 100.0, "edit": 200.0},
)


def test_one_request_takes_its_steps_and_what_is_beside_them() -> None:
    edit = Asked("edit", template=1, side=SIDES[0], at=1.0)
    assert simulated(COSTS, [Asked("plain")], 10) == pytest.approx([350.0])
    assert simulated(COSTS, [edit], 10) == pytest.approx([250.0 + SIDES[0]])


def test_two_requests_go_to_two_workers_and_a_third_shares_the_steps_of_one() -> None:
    assert simulated(COSTS, [Asked("plain")] * 2, 10) == pytest.approx([350.0, 350.0])
    took = simulated(COSTS, [Asked("plain")] * 3, 10)
    assert min(took) == pytest.approx(350.0)
    assert max(took) > 400


def test_three_workers_share_two_cores() -> None:
    """Three requests at a time take half as long again in each step; alone, one does not."""
    fleet = {"workers": 3, "cores": 2}
    assert simulated(COSTS, [Asked("plain")], 10, **fleet) == pytest.approx([350.0])
    took = simulated(COSTS, [Asked("plain")] * 3, 10, **fleet)
    assert all(350.0 < each <= 525.0 for each in took)
    assert max(took) > 450.0


def test_a_workload_keeps_the_workers_as_busy_as_it_should() -> None:
    options = argparse.Namespace(requests=2000, busy=0.5, steps=10, workers=1)
    asked = workload(COSTS, 0.5, options, seed=1)
    busy = sum(10 * (COSTS.overhead + COSTS.of(each, 10)) for each in asked)
    assert busy / 1e3 / asked[-1].at == pytest.approx(0.5, rel=0.1)
    assert statistics.fmean(each.template is not None for each in asked) == pytest.approx(
        0.5, abs=0.05
    )


def test_percentiles_are_compared() -> None:
    row = compared("x", [100.0] * 90 + [200.0] * 10, [110.0] * 90 + [150.0] * 10)
    assert row["p50"] == {"real_ms": 100, "simulated_ms": 110, "ratio": 1.1}
    assert row["p95"]["ratio"] == 0.75

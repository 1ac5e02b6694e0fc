"""The simulation of a fleet."""

from __future__ import annotations

import pytest

from bench.fleet_policies import POLICIES
from bench.fleet_sim import Simulation
from bench.fleet_world import World, requests_of


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_and_no_worker_works_more_than_all_the_time(policy: str) -> None:
    outcome = Simulation(World(requests=300), POLICIES[policy]).run()
    assert 0.05 < outcome.p50 <= outcome.p95
    assert 0 < outcome.busiest <= 1
    assert 0 < outcome.found <= 1


def test_the_same_seed_gives_the_same() -> None:
    worlds = [World(requests=200, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (Simulation(w, POLICIES["+ locality"]).run() for w in worlds)
    assert first == again != other


def test_one_request_alone_takes_its_steps() -> None:
    """Nothing is missing: 30 steps of the overhead and the larger of computing and loading."""
    world = World(requests=1, host=970, read=0.0)
    (request,) = requests_of(world)
    outcome = Simulation(world, POLICIES["request count"]).run()
    each = world.overhead + max(request.compute, request.copy)
    assert outcome.p95 == pytest.approx(30 * each / 1e3)
    assert outcome.found == 1


def test_locality_finds_more() -> None:
    world = World(requests=800)
    found = {
        name: Simulation(world, POLICIES[name]).run().found
        for name in ("round robin", "+ locality")
    }
    assert found["+ locality"] > found["round robin"] + 0.1

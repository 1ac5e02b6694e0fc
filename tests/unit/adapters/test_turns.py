"""Whose turn it is: nobody starves, nobody waits longer than stated."""

from __future__ import annotations

import random

import pytest

from tessera.adapters.turns import MAX_QUANTUM, MIN_QUANTUM, Turns


def test_the_active_set_stays_while_nobody_else_waits() -> None:
    turns = Turns("base")
    assert {turns.choose(["base", "base"]) for _ in range(1000)} == {"base"}
    assert turns.choose(["base", "a"]) == "base"


def test_a_set_that_nobody_wants_gives_way_at_once() -> None:
    turns = Turns("base")
    assert turns.choose(["b", "a", "b"]) == "b"
    assert turns.choose(["a"]) == "a"
    assert turns.current == "a"


def test_requests_of_the_active_set_ride_along() -> None:
    turns = Turns("base")
    assert [turns.choose(["a", "base"]) for _ in range(MIN_QUANTUM)] == ["base"] * MIN_QUANTUM
    assert [turns.choose(["a", "base"]) for _ in range(MIN_QUANTUM)] == ["a"] * MIN_QUANTUM
    assert turns.choose(["a", "base"]) == "base"


@pytest.mark.parametrize(
    ("refit_ms", "tick_ms", "quantum"),
    [(0, 0, MIN_QUANTUM), (1, 30, MIN_QUANTUM), (100, 40, 50), (9000, 40, MAX_QUANTUM)],
    ids=["unknown", "cheap", "weighed", "capped"],
)
def test_the_quantum_grows_with_the_price_of_a_refit(
    refit_ms: float, tick_ms: float, quantum: int
) -> None:
    turns = Turns("base")
    turns.refit.add(refit_ms)
    turns.tick.add(tick_ms)
    assert turns.quantum == quantum


@pytest.mark.parametrize("seed", range(20))
def test_nobody_waits_longer_than_the_bound(seed: int) -> None:
    """Random arrivals, each set's requests coming again and again, at the dearest refits."""
    rng = random.Random(seed)
    turns: Turns[int] = Turns(0)
    turns.refit.add(1e6)
    turns.tick.add(1)
    left = dict.fromkeys(range(rng.randint(2, 8)), 0)
    began: dict[int, tuple[int, int]] = {}
    longest = 0
    for now in range(6000):
        for key, steps in left.items():
            if steps == 0 and rng.random() < 0.3:
                left[key] = rng.choice([1, 20, 1000])
        wanted = [key for key, steps in left.items() if steps]
        if not wanted:
            continue
        for key in wanted:
            began.setdefault(key, (now, len(wanted)))
        chosen = turns.choose(rng.sample(wanted, len(wanted)))
        left[chosen] -= 1
        since, sets = began.pop(chosen)
        if now - since > 1:
            longest = max(longest, now - since)
            assert now - since <= (sets - 1) * MAX_QUANTUM
    assert longest > MAX_QUANTUM // 2  # somebody did wait

"""What calls cost, and which LoRA path is the cheaper one."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.adapters.costs import FRESH_S, MEASUREMENTS, SIZES, Costs, Curve, Group


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def measured(costs: Costs, sizes: dict[int, float], ranks: tuple[int, int] | None = None) -> Costs:
    for size, ms in sizes.items():
        for _ in range(MEASUREMENTS):
            costs.add(size, ms, ranks=ranks)
    return costs


def groups(count: int, steps: int = 20, active: bool = False) -> list[Group]:
    return [Group(2, steps, active and index == 0) for index in range(count)]


def test_costs_lie_between_those_of_the_sizes_beside() -> None:
    clock = Clock()
    curve = Curve(clock)
    for size, times in {2: (90, 10, 10), 8: (22, 22, 400), 16: (1, 1)}.items():
        for ms in times:
            curve.add(size, ms)
    assert (curve.at(2), curve.at(4), curve.at(8)) == (10, 14, 22)
    assert (curve.at(1), curve.at(16)) == (None, None)  # twice is not enough
    assert (curve.about(1), curve.about(16)) == (5, 44)
    clock.now = FRESH_S
    assert curve.about(4) is None


@pytest.mark.parametrize(
    ("count", "dense", "side", "refit_ms", "full", "better"),
    [
        (4, {2: 10, 8: 40}, 44, 1, False, False),  # a CPU: a batch costs what its rows cost
        (4, {2: 10, 8: 40}, 44, 600, False, True),  # dear refits
        (4, {2: 10, 8: 12}, 16, 1, False, True),  # a GPU: a batch costs little more than a row
        (4, {2: 10, 8: 30}, 32, 1, False, False),  # between: turns are better for most ...
        (4, {2: 10, 8: 30}, 32, 1, True, True),  # ... but not for those who wait for a place
        (1, {2: 10}, 12, 0, False, False),
        (1, {2: 10}, 12, 100, False, True),  # one set that is not in the engine
        (4, {2: 10}, None, 1, False, True),  # tried
        (4, {}, None, 1, False, False),  # what turns cost is measured first
        (1, {2: 10}, None, 1, False, False),
    ],
    ids=[
        "cpu", "dear refits", "gpu", "between", "between, full", "one set", "one set, dear refit",
        "untried", "nothing known", "one set, untried",
    ],
)  # fmt: skip
def test_the_better_way_is_taken(
    count: int,
    dense: dict[int, float],
    side: float | None,
    refit_ms: float,
    full: bool,
    better: bool,
) -> None:
    costs = measured(Costs(), dense)
    if side is not None:
        measured(costs, {2 * count: side}, (8, 1))
    price: dict[str, Any] = {"refit_ms": refit_ms, "quantum": 20}
    assert costs.side_is_better(groups(count), (8, 1), full=full, **price) is better


def test_turns_are_played_out() -> None:
    """Two sets of 30 steps, a quantum of 20, a step of 10 ms, a refit of 100 ms; the first set is
    in: A 200, B 100 + 200, A 100 + 100, B 100 + 100.
    """
    ends = (700.0, 900.0)
    for gain, better in ((0.96, False), (0.94, True)):
        each = gain * sum(ends) / 2 / 30
        costs = measured(measured(Costs(), {2: 10}), {4: each}, (1, 1))
        both = groups(2, steps=30, active=True)
        assert costs.side_is_better(both, (1, 1), refit_ms=100, quantum=20) is better


def test_calls_of_the_side_path_shrink() -> None:
    """One request of 10 steps and one of 30: 10 calls for both, 20 for the longer one."""
    costs = measured(measured(Costs(), {2: 10}), {2: 12, 4: 16}, (1, 1))
    pair = [Group(2, 10, True), Group(2, 30, False)]  # aside 160, 400; by turns 100, 400 + refit
    for refit_ms, better in ((40, False), (100, True)):
        found = costs.side_is_better(pair, (1, 1), refit_ms=refit_ms, quantum=100)
        assert found is better


def test_ranks_are_measured_apart() -> None:
    costs = measured(measured(Costs(), {2: 10}), {4: 99}, (64, 64))
    small = costs.side_is_better(groups(2), (8, 1), refit_ms=0, quantum=20)
    large = costs.side_is_better(groups(2), (64, 64), refit_ms=0, quantum=20)
    assert (small, large) == (True, False)


@pytest.mark.parametrize(
    ("dense", "side", "full", "tried"),
    [
        ({2: 10}, {}, False, True),
        ({2: 10, 6: 30}, {}, False, False),  # it cannot be cheaper than without LoRAs
        ({2: 10}, {(8, 1): {4: 20}}, False, False),  # nor than a smaller batch
        ({2: 10}, {(8, 1): {4: 20}}, True, True),
        ({2: 10}, {(4, 1): {6: 30}}, False, False),  # nor than smaller ranks
        ({2: 10}, {(8, 4): {6: 30}}, False, True),
        ({2: 10}, {(8, 1): {8: 30}}, False, True),
    ],
)
def test_what_cannot_pay_is_not_tried(
    dense: dict[int, float],
    side: dict[tuple[int, int], dict[int, float]],
    full: bool,
    tried: bool,
) -> None:
    """Three sets, by turns done after 10, 20 and 30 ms a step."""
    costs = measured(Costs(), dense)
    for ranks, sizes in side.items():
        measured(costs, sizes, ranks)
    found = costs.side_is_better(groups(3), (8, 1), refit_ms=0, quantum=20, full=full)
    assert found is tried


def test_only_the_latest_sizes_are_remembered() -> None:
    clock = Clock()
    curve = Curve(clock)
    for size in range(1, 2 * SIZES):
        clock.now += 1
        for _ in range(MEASUREMENTS):
            curve.add(size, float(size))
    assert (curve.at(SIZES - 1), curve.at(SIZES)) == (None, SIZES)
    assert len(curve._points) == SIZES

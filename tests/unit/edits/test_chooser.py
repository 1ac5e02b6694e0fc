"""Costs of steps, and the choice of their kinds against brute force."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.edits.chooser import Kinds, Line, Size, Step, StepChooser, measure, optimum
from tessera.shared import average

TIMES = st.floats(0, 10)
STEPS = st.lists(st.builds(Step, TIMES, TIMES, TIMES), min_size=1, max_size=8)


def duration(steps: Sequence[Step], kinds: Kinds) -> float:
    """Milliseconds until the last step ends if the steps are of these kinds."""
    read = end = 0.0
    for step, sparse in zip(steps, kinds, strict=True):
        if sparse:
            read += step.load
            end = max(read, end) + step.sparse
        else:
            end += step.dense
    return end


def prefers_sparse(chooser: StepChooser, size: Size, active: int) -> bool:
    (kind,) = chooser.kinds(size, active, [0.0], branches=2)
    return kind


@settings(max_examples=200)
@given(steps=STEPS)
def test_no_choice_ends_sooner_than_the_optimum(steps: list[Step]) -> None:
    best = min(duration(steps, kinds) for kinds in product((False, True), repeat=len(steps)))
    assert duration(steps, optimum(steps)) == pytest.approx(best)


def test_the_greedy_rule_is_beaten() -> None:
    """Always taking the cache gives 7, the optimum 5 (InstGenIE's rule is greedy)."""
    steps = [Step(load=2, sparse=1, dense=3)] * 3
    assert duration(steps, optimum(steps)) == 5
    assert duration(steps, (True, True, True)) == 7


def test_steps_are_dense_while_recordings_are_on_the_way() -> None:
    chooser = StepChooser(dense=Line(0, 1.0), sparse=Line(0, 1.0))
    slow = [250.0] + [0.0] * 7
    kinds = chooser.kinds((10, 10), 10, slow, branches=1)
    steps = [Step(load, sparse=10, dense=100) for load in slow]
    every: list[Kinds] = list(product((False, True), repeat=8))
    assert duration(steps, kinds) == min(duration(steps, k) for k in every)


def test_steps_that_must_be_dense_are_whatever_they_cost() -> None:
    chooser = StepChooser(dense=Line(0, 1.0), sparse=Line(0, 0.01))
    kinds = chooser.kinds((10, 10), 10, [None, None, 0.0, 0.0], branches=2)
    assert kinds == (False, False, True, True)


class TestPlanner:
    """Which path is cheaper."""

    def chooser(self) -> StepChooser:
        return StepChooser(dense=Line(0, 1.0), sparse=Line(10, 1.5))

    @pytest.mark.parametrize(("active", "sparse"), [(1, True), (50, True), (59, True), (61, False)])
    def test_takes_the_cheaper_path(self, active: int, sparse: bool) -> None:
        assert prefers_sparse(self.chooser(), (10, 10), active) is sparse

    def test_learns_what_steps_take(self) -> None:
        chooser = self.chooser()
        for _ in range(30):
            chooser.observe("dense", (10, 10), 100, 300.0)
        assert chooser.cost("dense", (10, 10), 100) == pytest.approx(300, rel=0.01)
        assert prefers_sparse(chooser, (10, 10), 99)
        assert not prefers_sparse(chooser, (5, 20), 99)

    def test_one_slow_step_changes_no_choice(self) -> None:
        chooser = self.chooser()
        chooser.observe("sparse", (10, 10), 30, 55.0)
        chooser.observe("sparse", (10, 10), 30, 200 * 55.0)
        assert prefers_sparse(chooser, (10, 10), 30)
        chooser.observe("sparse", (5, 20), 30, 200 * 55.0)  # the first of its kind
        for _ in range(10):
            chooser.observe("sparse", (5, 20), 30, 55.0)
        assert chooser.cost("sparse", (5, 20), 30) == pytest.approx(55, rel=0.25)

    def test_a_path_that_was_dear_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chooser = self.chooser()
        chooser.observe("sparse", (10, 10), 30, 55.0)
        for _ in range(30):
            chooser.observe("sparse", (10, 10), 30, 300.0)
        assert chooser.cost("sparse", (10, 10), 30) == pytest.approx(300, rel=0.01)
        assert not prefers_sparse(chooser, (10, 10), 30)
        with monkeypatch.context() as later:
            later.setattr(average, "FRESH_S", 0.0)
            assert chooser.cost("sparse", (10, 10), 30) == pytest.approx(55)
            assert prefers_sparse(chooser, (10, 10), 30)
        chooser.observe("sparse", (10, 10), 30, 300.0)  # it was tried, and still is
        assert not prefers_sparse(chooser, (10, 10), 30)

    def test_never_loses_more_than_a_twentieth_once_it_has_seen_both(self) -> None:
        """True costs that the lines do not describe: quadratic."""
        true: dict[str, Callable[[float], float]] = {
            "dense": lambda n: 3 + 0.8 * n + 0.002 * n * n,
            "sparse": lambda n: 20 + 1.1 * n + 0.002 * n * n,
        }
        size = (16, 16)
        chooser = StepChooser(Line(0, 1.0), Line(10, 1.2))
        rng = np.random.default_rng(0)
        for active in rng.integers(1, 256, 200):
            chosen = "sparse" if prefers_sparse(chooser, size, int(active)) else "dense"
            tokens = float(active) if chosen == "sparse" else 256.0
            chooser.observe(chosen, size, tokens, true[chosen](tokens))
        for active in range(1, 257):
            costs = {"sparse": true["sparse"](active), "dense": true["dense"](256)}
            chosen = "sparse" if prefers_sparse(chooser, size, active) else "dense"
            assert costs[chosen] <= 1.05 * min(costs.values()), active

    def test_measures_lines(self) -> None:
        chooser = measure(lambda: 100.0, lambda share: 5 + 80 * share, tokens=100)
        assert chooser.cost("dense", (20, 10), 200) == pytest.approx(200)
        assert chooser.cost("sparse", (10, 10), 30) == pytest.approx(29)

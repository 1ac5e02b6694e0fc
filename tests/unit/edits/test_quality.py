"""What an edit does for its quality."""

from __future__ import annotations

import itertools

import pytest

from tessera.contract import EDIT_QUALITIES, EditQuality
from tessera.edits.quality import BUILT_IN, FAST, Policy
from tessera.templates.nearest import Nearness

RATIOS = (0.0001, 0.02, 0.05, 0.11, 0.2, 0.35, 1.0)


def test_fast_is_what_edits_did_before_there_was_a_choice() -> None:
    for nearness, ratio in itertools.product(Nearness, RATIOS):
        assert BUILT_IN.of("fast", nearness, ratio) == (Policy(margin=1, every=0),)
    assert not any(FAST.dense_at(step, 20) for step in range(20))


def test_every_edit_has_a_policy() -> None:
    for quality, nearness, ratio in itertools.product(EDIT_QUALITIES, Nearness, RATIOS):
        assert BUILT_IN.of(quality, nearness, ratio)


def test_with_loras_only_recordings_of_the_own_prompt_reach_a_quality() -> None:
    for quality, nearness, ratio in itertools.product(EDIT_QUALITIES, Nearness, RATIOS):
        found = BUILT_IN.of(quality, nearness, ratio, adapted=True)
        if quality == EditQuality.FAST or (nearness == Nearness.OWN and ratio > 0.06):
            assert found == BUILT_IN.of(quality, nearness, ratio)
        elif nearness == Nearness.OWN:
            assert found[0].every
        else:
            assert not found


def computed(policy: Policy) -> tuple[int, int]:
    """How much a policy computes: dense steps of 60, and margin."""
    return sum(policy.dense_at(step, 60) for step in range(60)), policy.margin


@pytest.mark.parametrize("nearness", Nearness)
@pytest.mark.parametrize("ratio", RATIOS)
def test_best_computes_no_less_than_balanced(nearness: Nearness, ratio: float) -> None:
    balanced, best = (
        computed(BUILT_IN.of(quality, nearness, ratio)[0])
        for quality in (EditQuality.BALANCED, EditQuality.BEST)
    )
    assert best[0] >= balanced[0]
    assert best[1] >= balanced[1] or best[0] > balanced[0]


@pytest.mark.parametrize("quality", [EditQuality.BALANCED, EditQuality.BEST])
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_nearer_prompt_needs_no_more_dense_steps(quality: str, ratio: float) -> None:
    own, empty = (
        computed(BUILT_IN.of(quality, nearness, ratio)[0])
        for nearness in (Nearness.OWN, Nearness.EMPTY)
    )
    assert own[0] <= empty[0]
    assert own[1] <= empty[1] or own[0] < empty[0]


def test_every_third_step_is_dense() -> None:
    assert [step for step in range(9) if Policy(1, every=3).dense_at(step, 9)] == [0, 3, 6]


@pytest.mark.parametrize(
    ("evaluations", "dense"),
    [(20, [4, 5, 6, 7, 16, 17, 18, 19]), (7, [2, 6]), (3, [1]), (1, [])],
)
def test_fifths_of_any_schedule_are_dense(evaluations: int, dense: list[int]) -> None:
    policy = Policy(1, fifths=(1, 4))
    found = [step for step in range(evaluations) if policy.dense_at(step, evaluations)]
    assert found == dense

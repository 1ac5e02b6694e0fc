"""From errors to policies, against all policies that there are."""

from __future__ import annotations

import statistics
from itertools import chain, combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.contract import FIFTHS, EditQuality
from tessera.edits.quality import Policy
from tessera_build.probe.derive import (
    BASE,
    EVERY,
    GOALS,
    MARGINS,
    SAFETY,
    Errors,
    Goal,
    cheapest,
    dense_share,
)

BALANCED, BEST = GOALS[EditQuality.BALANCED], GOALS[EditQuality.BEST]
TOKENS = {1: 0.1, 3: 0.2, 4: 0.3, 6: 0.4}
SUBSETS = chain.from_iterable(combinations(range(FIFTHS), count) for count in range(FIFTHS))
EVERYTHING = [Policy(*each) for each in product(MARGINS, (0, 3, 2), tuple(SUBSETS))]
LEAST = Policy(1)


def table(margins: dict[int, float], left: dict[int, float], every: float = 1.0) -> Errors:
    """Errors that are alike in all cases: by margin, and what is left by fifth."""
    base = margins[BASE]
    return Errors(
        tokens=TOKENS,
        margins={margin: [error] * 4 for margin, error in margins.items()},
        fifths=[[left.get(fifth, 1.0) * base] * 4 for fifth in range(FIFTHS)],
        every={n: [every * base] * 4 for n in EVERY},
    )


FLAT = dict.fromkeys(MARGINS, 0.1)


@pytest.mark.parametrize(
    ("errors", "found"),
    [
        (table(dict.fromkeys(MARGINS, 0.01), {}), [Policy(1)]),
        (table({1: 0.1, 3: 0.08, 4: 0.029, 6: 0.01}, {}), [Policy(4)]),
        (table(FLAT, {1: 0.2}), [Policy(1, fifths=(1,))]),
        (table(FLAT, {1: 0.5, 2: 0.9, 4: 0.55}), [Policy(1, fifths=(1, 4))]),
        (table(FLAT, {}, every=0.25), [Policy(1, every=3)]),
        (table({1: 0.1, 3: 0.1, 4: 0.1, 6: 0.02}, {2: 0.2}), [Policy(1, fifths=(2,)), Policy(6)]),
        (table(FLAT, {}), []),
    ],
    ids=["none", "margin", "one fifth", "two fifths", "regular", "either", "dense only"],
)
def test_a_known_answer_is_found(errors: Errors, found: list[Policy]) -> None:
    assert list(cheapest(errors, BALANCED, floor=LEAST)) == sorted(found, key=errors.computed)


def test_a_few_bad_cases_count_by_the_quartile() -> None:
    good, bad = 0.01, 0.2
    mixed = {margin: [good, good, bad, bad] for margin in (1, 3)} | {4: [good] * 4, 6: [good] * 4}
    errors = Errors(TOKENS, mixed, [mixed[BASE]] * FIFTHS, dict.fromkeys(EVERY, mixed[BASE]))
    assert cheapest(errors, Goal(0.5, 0.9), floor=LEAST) == (Policy(4),)
    assert cheapest(errors, Goal(0.5, 0.5), floor=LEAST) == (Policy(1),)


@st.composite
def tables(draw: st.DrawFn) -> Errors:
    """Errors of any cases; a wider margin computes no fewer tokens."""
    count = draw(st.integers(1, 6))
    error = st.floats(0, 0.3) | st.sampled_from([0.0, 0.02, 0.05])
    listed = st.lists(error, min_size=count, max_size=count)
    tokens = sorted(draw(st.lists(st.floats(0.01, 1), min_size=4, max_size=4)))
    return Errors(
        tokens=dict(zip(MARGINS, tokens, strict=True)),
        margins={margin: draw(listed) for margin in MARGINS},
        fifths=[draw(listed) for _ in range(FIFTHS)],
        every={n: draw(listed) for n in EVERY},
    )


def reaches(errors: Errors, policy: Policy, goal: Goal) -> bool:
    """By the definition: so many cases are near enough."""
    found = sorted(errors.predicted(policy))
    lower = found[len(found) - 1 - len(found) // 4]
    median = statistics.median(found)
    return median <= SAFETY * (1 - goal.median) and lower <= SAFETY * (1 - goal.quartile)


FLOORS = st.builds(
    Policy,
    st.sampled_from(MARGINS),
    st.sampled_from([0, 3, 2]),
    st.sampled_from([(), (4,), (0, 3)]),
)


def careful(policy: Policy, floor: Policy) -> bool:
    """Whether a policy has at least the margin and the dense steps of another."""
    regular = not floor.every or 0 < policy.every <= floor.every
    return regular and policy.margin >= floor.margin and set(policy.fifths) >= set(floor.fifths)


@settings(max_examples=40)
@given(
    errors=tables(),
    floor=FLOORS,
    goal=st.sampled_from([BALANCED, BEST]),
    dense=st.floats(1, 100),
    fixed=st.floats(0, 1),
    slope=st.floats(0, 1),
)
def test_the_cheapest_of_all_is_kept_whatever_steps_cost(
    errors: Errors, floor: Policy, goal: Goal, dense: float, fixed: float, slope: float
) -> None:
    """And none that misses the goal, or is less careful than the floor."""

    def cost(policy: Policy) -> float:
        share = dense_share(policy)
        tokens = errors.tokens[policy.margin]
        return dense * (share + (1 - share) * (fixed + (1 - fixed) * slope * tokens))

    able = [p for p in EVERYTHING if careful(p, floor) and reaches(errors, p, goal)]
    found = cheapest(errors, goal, floor=floor)
    assert set(found) <= set(able)
    assert bool(found) == bool(able)
    if able:
        assert min(map(cost, found)) == pytest.approx(min(map(cost, able)))
        assert errors.computed(found[0]) == pytest.approx(min(map(errors.computed, able)))


@settings(max_examples=40)
@given(errors=tables(), most=st.floats(0, 0.05))
def test_none_is_predicted_worse_than_asked(errors: Errors, most: float) -> None:
    """So `best` is never predicted worse than `balanced`."""
    able = [p for p in EVERYTHING if reaches(errors, p, BEST) and errors.median(p) <= most]
    found = cheapest(errors, BEST, floor=LEAST, at_most=most)
    assert all(errors.median(policy) <= most for policy in found)
    assert bool(found) == bool(able)


def test_first_evaluations_are_dense_in_any_case() -> None:
    assert dense_share(Policy(1)) == pytest.approx(0.1)
    assert dense_share(Policy(1, fifths=(0,))) == pytest.approx(0.2)
    assert dense_share(Policy(1, fifths=(1, 3))) == pytest.approx(0.5)
    assert dense_share(Policy(1, every=2)) == pytest.approx(0.55)

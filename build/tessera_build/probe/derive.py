"""From errors of sparse edits to the policies that reach a quality. Knows numbers only.

A bundle's policies are never less careful than the demo model's, which 120 cases have shown to
reach their goals. The few cases of a probe say where a bundle needs more, not where it needs less.

An error is 1 - SSIM inside the mask. Margins, fifths of the schedule and regular dense steps are
measured on their own, in the same cases. What they do together is predicted by a product: what a
fifth leaves of the error at `BASE` is what it leaves at any margin, and of any other fifth's rest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from tessera.contract import FIFTHS, EditQuality
from tessera.edits.quality import WARM_UP, Policy

MARGINS = (1, 3, 4, 6)
BASE = 3
"""The margin at which dense evaluations are measured."""
EVERY = (3, 2)
SAFETY = 0.6
"""A predicted error may be at most this share of a goal's: predictions and few cases are
uncertain."""

SCHEDULE = 60
"""Evaluations of the schedule whose dense ones are counted; `FIFTHS`, 2 and 3 divide it."""


@dataclass(frozen=True)
class Goal:
    """The SSIM that half of the edits and three quarters of them are to have, at least."""

    median: float
    quartile: float

    def reached(self, errors: Sequence[float]) -> bool:
        """Whether predicted errors of some cases reach it safely."""
        return (
            statistics.median(errors) <= SAFETY * (1 - self.median)
            and quartile(errors) <= SAFETY * (1 - self.quartile)
        )  # fmt: skip


GOALS = {EditQuality.BALANCED: Goal(0.95, 0.9), EditQuality.BEST: Goal(0.97, 0.9)}


@dataclass(frozen=True)
class Errors:
    """Errors of sparse edits from recordings of one nearness, with masks of one share. Each list
    has one for each case, in the same order.

    Attributes:
        tokens: by margin, the share of the tokens that a sparse step computes.
        margins: by margin.
        fifths: with one fifth of the schedule dense, at `BASE`.
        every: with every second evaluation dense, every third ..., at `BASE`.
    """

    tokens: dict[int, float]
    margins: dict[int, list[float]]
    fifths: list[list[float]]
    every: dict[int, list[float]]

    def left(self, errors: Sequence[float]) -> list[float]:
        """What share of the error at `BASE` these are, at most 1."""
        pairs = zip(errors, self.margins[BASE], strict=True)
        return [min(1.0, error / base) if base > 0 else 1.0 for error, base in pairs]

    def median(self, policy: Policy) -> float:
        """Of the predicted errors."""
        return statistics.median(self.predicted(policy))

    def predicted(self, policy: Policy) -> list[float]:
        """The error of each case by a policy."""
        parts = [self.left(self.fifths[fifth]) for fifth in policy.fifths]
        if policy.every:
            parts.append(self.left(self.every[policy.every]))
        errors = self.margins[policy.margin]
        return [error * math.prod(p[i] for p in parts) for i, error in enumerate(errors)]

    def computed(self, policy: Policy) -> float:
        """Tokens of all steps, as a share of those of a dense edit."""
        dense = dense_share(policy)
        return dense + (1 - dense) * self.tokens[policy.margin]


def quartile(errors: Sequence[float]) -> float:
    """The error that three quarters of the cases stay below."""
    return sorted(errors, reverse=True)[len(errors) // 4]


def dense_share(policy: Policy) -> float:
    """Share of a schedule that is dense, with the evaluations that are dense in any case."""
    first = WARM_UP * SCHEDULE
    return sum(i < first or policy.dense_at(i, SCHEDULE) for i in range(SCHEDULE)) / SCHEDULE


def candidates(floor: Policy) -> Iterator[Policy]:
    """All policies that are considered: with at least the margin and the dense steps of another.
    Not all evaluations of any are dense.
    """
    regular = [every for every in EVERY if not floor.every or every <= floor.every]
    for margin in MARGINS:
        if margin < floor.margin:
            continue
        for every in regular if floor.every else (0, *regular):
            for count in range(FIFTHS):
                for fifths in combinations(range(FIFTHS), count):
                    if set(floor.fifths) <= set(fifths):
                        yield Policy(margin, every, fifths)


def cheapest(
    errors: Errors, goal: Goal, *, floor: Policy, at_most: float = math.inf
) -> tuple[Policy, ...]:
    """The policies that reach a goal, without those that another beats: fewest tokens first.

    Whatever steps cost, the cheapest policy that reaches the goal is among them as long as a dense
    evaluation costs more than a sparse one, and a wider margin no less than a narrower one. Empty
    if only a dense edit reaches it.

    Args:
        errors: what was measured.
        goal: what is to be reached.
        floor: no policy is less careful than this.
        at_most: the largest predicted median error.
    """
    able = [
        policy
        for policy in candidates(floor)
        if goal.reached(errors.predicted(policy)) and errors.median(policy) <= at_most
    ]
    ranks = {each: (each.margin, dense_share(each), errors.median(each)) for each in able}
    best: list[Policy] = []
    for policy in sorted(able, key=lambda each: ranks[each]):
        if all(dense_share(policy) < dense_share(other) for other in best):
            best.append(policy)
    return tuple(sorted(best, key=errors.computed))

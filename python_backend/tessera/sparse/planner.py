"""Which steps of an edit use the cache: a cost model, and the exact optimum over it.

A step is run by the dense graphs or by the sparse one; the latter first needs its rows from the
store, which are loaded one step after the other while earlier steps compute. Every step may be of
either kind, whatever the others are, so a request can compute densely until its cache has arrived.
Knows programs, tables and numbers; runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tessera.sparse.program import Program, Site
from tessera.sparse.tables import Tables

Kind = Literal["dense", "sparse"]
Mode = Literal["auto", "dense", "sparse"]


@dataclass(frozen=True)
class Line:
    """`start + slope * x`: seconds for an amount of work or of bytes."""

    start: float
    slope: float

    def __call__(self, amount: float) -> float:
        """The seconds."""
        return self.start + self.slope * amount

    @classmethod
    def fit(cls, points: Sequence[tuple[float, float]]) -> Line:
        """The line with the least relative squared error through (amount, seconds), neither start
        nor slope below zero; through the origin if there is one point only.

        Raises:
            ValueError: there is no point, or one without time or amount.
        """
        if not points or min(min(p) for p in points) <= 0:
            raise ValueError(f"a fit needs amounts and seconds above zero, these are {points}")
        amounts, seconds = np.array(points, float).T
        columns = {"both": [1 / seconds, amounts / seconds], "slope": [amounts / seconds]}
        if len(set(amounts)) > 1:
            start, slope = np.linalg.lstsq(
                np.stack(columns["both"], 1), np.ones(len(points)), rcond=None
            )[0]
            if slope < 0:
                return cls(float(seconds.mean()), 0.0)
            if start >= 0:
                return cls(float(start), float(slope))
        ratio = columns["slope"][0]
        return cls(0.0, float(ratio.sum() / (ratio @ ratio)))


@dataclass(frozen=True)
class Costs:
    """Seconds of what a step is made of, by multiply-adds or bytes."""

    dense: Line
    sparse: Line
    load: Line


@dataclass(frozen=True)
class Step:
    """Seconds of one step: loading its rows, computing with them, computing densely."""

    load: float
    sparse: float
    dense: float


@dataclass(frozen=True)
class Plan:
    """What each step is to be, and when the last one ends (seconds from the first load)."""

    kinds: tuple[Kind, ...]
    seconds: float


def optimum(steps: Sequence[Step]) -> Plan:
    """The kinds of steps that end soonest.

    A sparse step starts when the step before has ended and its own rows and those of all sparse
    steps before it have been loaded. Greedy choices are not optimal; so after each step all pairs
    (seconds of loading so far, end of computing) are kept that no other pair beats in both.
    """
    front: list[tuple[float, float, tuple[Kind, ...]]] = [(0.0, 0.0, ())]
    for step in steps:
        grown = [(load, end + step.dense, (*kinds, "dense")) for load, end, kinds in front]
        for load, end, kinds in front:
            loaded = load + step.load
            grown.append((loaded, max(loaded, end) + step.sparse, (*kinds, "sparse")))
        front = _pareto(grown)
    _, end, kinds = min(front, key=lambda entry: entry[1])
    return Plan(kinds, end)


def seconds(steps: Sequence[Step], kinds: Sequence[Kind]) -> float:
    """When the last step ends if the steps are of these kinds."""
    load = end = 0.0
    for step, kind in zip(steps, kinds, strict=True):
        if kind == "sparse":
            load += step.load
            end = max(load, end) + step.sparse
        else:
            end += step.dense
    return end


def plan_steps(steps: Sequence[Step], mode: Mode = "auto") -> Plan:
    """The optimum, or all steps of the kind that `mode` names."""
    if mode == "auto":
        return optimum(steps)
    kinds: tuple[Kind, ...] = (mode,) * len(steps)
    return Plan(kinds, seconds(steps, kinds))


def step_of(
    costs: Costs,
    program: Program,
    tables: Tables,
    *,
    branches: int,
    caches: int,
    sites: Sequence[Site],
    itemsize: int,
) -> Step:
    """What one step of a request costs.

    Args:
        costs: measured on this machine.
        program: of the UNet.
        tables: of the request's mask.
        branches: of the request.
        caches: of which it reads rows: one for each branch, or one if they share it.
        sites: that are stored.
        itemsize: bytes of a stored number.
    """
    active = [level.count for level in tables.levels]
    every = [level.total for level in tables.levels]
    moved = itemsize * caches * sum(numbers_needed(site, tables) for site in sites)
    return Step(
        load=costs.load(moved) if moved else 0.0,
        sparse=costs.sparse(branches * work(program, active, every)),
        dense=costs.dense(branches * work(program, every, every)),
    )


def work(program: Program, rows: Sequence[int], tokens: Sequence[int]) -> float:
    """Multiply-adds of one branch of a step with `rows` computed of the `tokens` of each level."""
    total = 0.0
    for op in program.ops:
        weights, attended = program.work_of(op)
        total += rows[op.level] * (weights + attended * tokens[op.level])
    return total


def numbers_needed(site: Site, tables: Tables) -> int:
    """How many of a site's recorded numbers a mask needs."""
    level = tables.levels[site.level]
    if site.kind == "norm":
        return site.width
    if site.kind == "norm_rows":
        return level.count * site.width
    if site.kind == "halo":
        return len(tables[site.table].halo) * site.width
    return (level.total - level.count) * site.width


def _pareto(
    entries: list[tuple[float, float, tuple[Kind, ...]]],
) -> list[tuple[float, float, tuple[Kind, ...]]]:
    """Those that no other beats in both numbers, by ascending first number."""
    entries.sort(key=lambda entry: entry[:2])
    best = [entries[0]]
    for entry in entries[1:]:
        if entry[1] < best[-1][1]:
            best.append(entry)
    return best

"""Chooses dense or sparse for each step of a request by expected cost in milliseconds.

Costs are lines. A dense step costs an amount per token. A sparse step costs a constant plus an
amount per active token. Both are per branch.

Costs are measured when the server starts and corrected by the times of later steps. Other load on
the machine therefore misleads the chooser only briefly: one slow step counts for little, and a kind
that was expensive is tried again. Knows numbers only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.shared.average import OUTLIER, Estimate

Size = tuple[int, int]
"""(height, width) of the latents."""

Kinds = tuple[bool, ...]
"""Whether each step is sparse."""


@dataclass(frozen=True)
class Line:
    """`constant + slope * tokens` milliseconds."""

    constant: float
    slope: float

    def at(self, tokens: float) -> float:
        """Milliseconds at a number of tokens."""
        return self.constant + self.slope * tokens

    @classmethod
    def through(cls, first: tuple[float, float], second: tuple[float, float]) -> Line:
        """The line through two points (tokens, milliseconds), with a slope of at least 0."""
        (x0, y0), (x1, y1) = first, second
        slope = max(0.0, (y1 - y0) / (x1 - x0))
        return cls(max(0.0, y0 - slope * x0), slope)


@dataclass(frozen=True)
class Step:
    """Milliseconds of one step: loading its recording, and computing it sparsely or densely."""

    load: float
    sparse: float
    dense: float


def optimum(steps: Sequence[Step]) -> Kinds:
    """The kinds of steps that finish earliest.

    Recordings are read one after the other while earlier steps compute. A sparse step starts when
    the step before has ended and its recording, and those of all sparse steps before it, are read.
    So a request may compute densely while its cache is being read.

    The greedy choice, which uses every recording that is read in time, is not optimal. Instead,
    after each step all pairs (end of reading, end of computing) are kept that no other pair beats
    in both.
    """
    # Entries: (milliseconds until the reader is free, until the last step has ended, kinds so far).
    front: list[tuple[float, float, Kinds]] = [(0.0, 0.0, ())]
    for step in steps:
        # A dense step does not use the reader: it costs more, but later recordings catch up.
        longer = [(read, end + step.dense, (*kinds, False)) for read, end, kinds in front]
        for read, end, kinds in front:
            arrives = read + step.load
            longer.append((arrives, max(arrives, end) + step.sparse, (*kinds, True)))
        # An entry that is later in both times can never overtake, since the remaining steps only
        # add to both. Dropping it keeps the front short: all combinations would be 2^steps.
        front = _pareto(longer)
    return min(front, key=lambda entry: entry[1])[2]


def _pareto(entries: list[tuple[float, float, Kinds]]) -> list[tuple[float, float, Kinds]]:
    """Entries that no other beats in both times, ascending by the first."""
    entries.sort(key=lambda entry: entry[:2])
    best = [entries[0]]
    for entry in entries[1:]:
        if entry[1] < best[-1][1]:
            best.append(entry)
    return best


@dataclass
class StepChooser:
    """Chooses the cheaper kind for each step.

    Attributes:
        dense: cost of one branch of a dense step, by the tokens of its latents.
        sparse: cost of one branch of a sparse step, by its active tokens.
        factors: corrections by kind ("dense" or "sparse") and size of the latents, and in each by
            tokens on a logarithmic scale.
    """

    dense: Line
    sparse: Line
    factors: dict[tuple[str, Size], dict[int, Estimate]] = field(default_factory=dict)

    def kinds(
        self, size: Size, active_latents: int, loads: Sequence[float | None], *, branches: int
    ) -> Kinds:
        """For each step, whether it should be sparse.

        Args:
            size: (height, width) of the latents.
            active_latents: how many latents a sparse step computes.
            loads: milliseconds until each step's recording is read, 0 if it is in memory; `None`
                for a step that has to be dense.
            branches: branches of the request.
        """
        dense = branches * self.cost("dense", size, size[0] * size[1])
        sparse = branches * self.cost("sparse", size, active_latents)
        return optimum(
            [
                Step(0.0, math.inf, dense) if load is None else Step(load, sparse, dense)
                for load in loads
            ]
        )

    def cost(self, kind: str, size: Size, tokens: float) -> float:
        """Expected milliseconds of one branch of one step."""
        line = self.sparse if kind == "sparse" else self.dense
        return line.at(tokens) * self._factor(kind, size, tokens)

    def observe(self, kind: str, size: Size, tokens: float, milliseconds: float) -> None:
        """Correct the expected cost by a step that has run.

        Args:
            kind: "dense" or "sparse".
            size: (height, width) of the latents.
            tokens: tokens of a branch; the mean over the branches that shared the call.
            milliseconds: time per branch.
        """
        line = self.sparse if kind == "sparse" else self.dense
        if line.at(tokens) <= 0:
            return
        ratio, bucket = milliseconds / line.at(tokens), _bucket(tokens)
        factors = self.factors.setdefault((kind, size), {})
        if bucket in factors:
            factors[bucket].learn(ratio)
        else:
            first = min(ratio, OUTLIER * self._factor(kind, size, tokens))
            factors[bucket] = Estimate(first, first)

    def _factor(self, kind: str, size: Size, tokens: float) -> float:
        """The factor of the closest bucket that has one; 1 if none has."""
        factors = self.factors.get((kind, size))
        if not factors:
            return 1.0
        bucket = _bucket(tokens)
        return factors[min(factors, key=lambda b: abs(b - bucket))].expected

    def to_json(self) -> str:
        """Lines and factors as JSON."""
        rows = [
            [kind, *size, bucket, factor.now, factor.least]
            for (kind, size), factors in self.factors.items()
            for bucket, factor in factors.items()
        ]
        lines = [[line.constant, line.slope] for line in (self.dense, self.sparse)]
        return json.dumps({"lines": lines, "factors": rows})

    def load(self) -> dict[str, Any]:
        """Lines and factors as a server's load tells them."""
        rows = [
            [kind, *size, bucket, round(factor.expected, 4)]
            for (kind, size), factors in self.factors.items()
            for bucket, factor in factors.items()
        ]
        lines = {"dense": self.dense, "sparse": self.sparse}
        return {n: [line.constant, line.slope] for n, line in lines.items()} | {"factors": rows}

    @classmethod
    def from_json(cls, text: str) -> StepChooser:
        """Inverse of `to_json`."""
        content = json.loads(text)
        dense, sparse = (Line(*line) for line in content["lines"])
        chooser = cls(dense, sparse)
        for kind, height, width, bucket, now, least in content["factors"]:
            factors = chooser.factors.setdefault((kind, (height, width)), {})
            factors[bucket] = Estimate(now, least)
        return chooser


def measure(
    dense: Callable[[], float], sparse: Callable[[float], float], *, tokens: int
) -> StepChooser:
    """Measure a step chooser for this machine.

    Args:
        dense: runs a dense step of `tokens` tokens; returns milliseconds per branch.
        sparse: runs a sparse step with that share of the tokens active; returns milliseconds per
            branch.
        tokens: tokens of the latents in these steps.
    """
    few, many = 0.1, 0.5
    points = [(share * tokens, _best(lambda s=share: sparse(s))) for share in (few, many)]  # type: ignore[misc]
    return StepChooser(Line(0.0, _best(dense) / tokens), Line.through(points[0], points[1]))


def _bucket(tokens: float) -> int:
    """Buckets on a logarithmic scale, each about a fifth wider than the one before."""
    return round(4 * math.log2(tokens))


def _best(run: Callable[[], float]) -> float:
    """The shortest of three runs, after a warm-up run."""
    run()
    return min(run() for _ in range(3))

"""Dense or sparse: what a step of a request costs either way, in milliseconds, and which of its
steps are to be which.

Costs are lines: a dense step costs so much per token, a sparse one a constant and so much per
active token, both per branch. They are measured when the server starts and corrected by what the
steps of requests then take, so a machine that is busy with something else does not fool it for
long: one slow step counts for little, and a kind that was dear is tried again. Knows numbers only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Size = tuple[int, int]
"""(height, width) of the latents."""

Kinds = tuple[bool, ...]
"""Whether each step is sparse."""

_WEIGHT = 0.2
"""Of the latest step among what a size's correction remembers."""

OUTLIER = 3.0
"""A step counts as taking at most this many times what was expected of it."""

FRESH_S = 60.0
"""A kind that no step has taken for this long is expected to cost what it did at its best, so that
it is tried again."""


@dataclass(frozen=True)
class Line:
    """`constant + slope * tokens` milliseconds."""

    constant: float
    slope: float

    def at(self, tokens: float) -> float:
        """The value there."""
        return self.constant + self.slope * tokens

    @classmethod
    def through(cls, first: tuple[float, float], second: tuple[float, float]) -> Line:
        """The line through two points (tokens, milliseconds); it never falls."""
        (x0, y0), (x1, y1) = first, second
        slope = max(0.0, (y1 - y0) / (x1 - x0))
        return cls(max(0.0, y0 - slope * x0), slope)


@dataclass(frozen=True)
class Step:
    """Milliseconds of one step: reading its recording, computing with it, computing densely."""

    load: float
    sparse: float
    dense: float


@dataclass
class Factor:
    """What steps took over what the line says.

    Attributes:
        now: as of late.
        least: at its best.
        at: when the last of them was run, of the monotonic clock.
    """

    now: float
    least: float
    at: float = field(default_factory=time.monotonic, compare=False)

    @property
    def expected(self) -> float:
        """Of the next step."""
        return self.now if time.monotonic() - self.at < FRESH_S else self.least

    def learn(self, seen: float) -> None:
        """Of a step that has been run."""
        self.now += _WEIGHT * (min(seen, OUTLIER * self.now) - self.now)
        self.least = min(self.least, self.now)
        self.at = time.monotonic()


def optimum(steps: Sequence[Step]) -> Kinds:
    """The kinds of steps that end soonest.

    Recordings are read one after the other while earlier steps compute; a sparse step starts when
    the step before has ended and its own recording and those of all sparse steps before it are
    there. So a request may compute densely while its cache is on the way. Taking each recording
    that is there in time is not optimal; after each step all pairs (time of reading so far, end of
    computing) are kept that no other pair beats in both.
    """
    # Entries: (milliseconds until the reader is free, until the last step has ended, kinds so far).
    front: list[tuple[float, float, Kinds]] = [(0.0, 0.0, ())]
    for step in steps:
        # A dense step leaves the reader alone: it costs more, and later recordings catch up.
        longer = [(read, end + step.dense, (*kinds, False)) for read, end, kinds in front]
        for read, end, kinds in front:
            arrives = read + step.load
            longer.append((arrives, max(arrives, end) + step.sparse, (*kinds, True)))
        # Whoever is later in both times can never overtake, since both only grow by what the
        # remaining steps add. That keeps the front short, where all kinds would be 2^steps.
        front = _pareto(longer)
    return min(front, key=lambda entry: entry[1])[2]


def _pareto(entries: list[tuple[float, float, Kinds]]) -> list[tuple[float, float, Kinds]]:
    """Those that no other beats in both numbers, by ascending first number."""
    entries.sort(key=lambda entry: entry[:2])
    best = [entries[0]]
    for entry in entries[1:]:
        if entry[1] < best[-1][1]:
            best.append(entry)
    return best


@dataclass
class StepChooser:
    """Chooses the cheaper kind.

    Attributes:
        dense: of a branch, by the tokens of its latents.
        sparse: of a branch, by its active tokens.
        factors: by kind (dense or sparse) and size of the latents, and by tokens on a logarithmic
            scale.
    """

    dense: Line
    sparse: Line
    factors: dict[tuple[str, Size], dict[int, Factor]] = field(default_factory=dict)

    def kinds(
        self, size: Size, active_latents: int, loads: Sequence[float | None], *, branches: int
    ) -> Kinds:
        """For each step, whether it is to be sparse.

        Args:
            size: of the latents.
            active_latents: latents of a sparse step.
            loads: milliseconds that reading each step's recording takes, 0 if it is at hand; `None`
                for a step that has to be dense.
            branches: of the request.
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
        """Learn from a branch of a step that has been run; `tokens` is the mean of those that
        shared the call.
        """
        line = self.sparse if kind == "sparse" else self.dense
        if line.at(tokens) <= 0:
            return
        seen, place = milliseconds / line.at(tokens), _place(tokens)
        known = self.factors.setdefault((kind, size), {})
        if place in known:
            known[place].learn(seen)
        else:
            first = min(seen, OUTLIER * self._factor(kind, size, tokens))
            known[place] = Factor(first, first)

    def _factor(self, kind: str, size: Size, tokens: float) -> float:
        """Of the place that is closest among those known; 1 if there is none."""
        known = self.factors.get((kind, size))
        if not known:
            return 1.0
        place = _place(tokens)
        return known[min(known, key=lambda p: abs(p - place))].expected

    def to_json(self) -> str:
        """Everything it knows."""
        known = [
            [kind, *size, place, factor.now, factor.least]
            for (kind, size), factors in self.factors.items()
            for place, factor in factors.items()
        ]
        lines = [[line.constant, line.slope] for line in (self.dense, self.sparse)]
        return json.dumps({"lines": lines, "factors": known})

    @classmethod
    def from_json(cls, text: str) -> StepChooser:
        """Inverse of `to_json`."""
        content = json.loads(text)
        dense, sparse = (Line(*line) for line in content["lines"])
        chooser = cls(dense, sparse)
        for kind, height, width, place, now, least in content["factors"]:
            known = chooser.factors.setdefault((kind, (height, width)), {})
            known[place] = Factor(now, least)
        return chooser


def measure(
    dense: Callable[[], float], sparse: Callable[[float], float], *, tokens: int
) -> StepChooser:
    """A chooser for one machine.

    Args:
        dense: runs a branch of a dense step of `tokens` tokens, returns milliseconds.
        sparse: runs a branch of a sparse step with that share of the tokens active.
        tokens: of the latents that are measured with.
    """
    few, many = 0.1, 0.5
    points = [(share * tokens, _best(lambda s=share: sparse(s))) for share in (few, many)]  # type: ignore[misc]
    return StepChooser(Line(0.0, _best(dense) / tokens), Line.through(points[0], points[1]))


def _place(tokens: float) -> int:
    """Steps of a fifth."""
    return round(4 * math.log2(tokens))


def _best(run: Callable[[], float]) -> float:
    """The shortest of three runs, after one that does not count."""
    run()
    return min(run() for _ in range(3))

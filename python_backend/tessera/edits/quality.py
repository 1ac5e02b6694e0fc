"""What an edit does for the quality that is asked of it: its margin and its dense steps.

Knows numbers only. The table here is measured in the demo model by `bench/edit_policies.py`;
docs/internals/templates.md has the figures. `tessera.edits.measured` reads that of a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.contract import FIFTHS, EditQuality
from tessera.templates.keys import Nearness

WARM_UP = 0.1
"""Share of a schedule's steps, the noisiest, that is run densely: there the prompt decides what the
mask will show, and a template that was recorded without a prompt misleads most
(docs/internals/templates.md has the figures)."""


@dataclass(frozen=True)
class Policy:
    """One way to spend time on quality.

    Attributes:
        margin: how many latents the computed tokens extend beyond the mask.
        every: every `every`-th evaluation is dense; 0 for none beyond the first ones.
        fifths: fifths of the schedule whose evaluations are dense; 0 is the noisiest.
    """

    margin: int
    every: int = 0
    fifths: tuple[int, ...] = ()

    def dense_at(self, evaluation: int, evaluations: int) -> bool:
        """Whether an evaluation of a schedule of so many evaluations is dense."""
        regular = bool(self.every) and evaluation % self.every == 0
        return regular or FIFTHS * evaluation // evaluations in self.fifths

    def __str__(self) -> str:
        parts = [f"margin {self.margin}"]
        if self.every:
            parts.append(f"every {self.every}. step dense")
        if self.fifths:
            parts.append(f"fifths {', '.join(str(fifth + 1) for fifth in self.fifths)} dense")
        return " + ".join(parts)

    @property
    def told(self) -> list[Any]:
        """As a server's load has it: margin, every and fifths."""
        return [self.margin, self.every, list(self.fifths)]


FAST = Policy(margin=1)
"""What edits did before there was a choice."""

Rows = tuple[tuple[float, tuple[Policy, ...]], ...]
"""Policies for masks up to a share of the picture. The first one computes fewest tokens; the others
may cost less where tokens are cheap. None where only a dense edit reaches the quality."""

Reached = Mapping[tuple[EditQuality, Nearness], Rows]

_REACHED: Reached = {
    (EditQuality.BALANCED, Nearness.OWN): (
        (0.03, (Policy(3),)),
        (0.25, (Policy(1),)),
        (1.0, (Policy(3),)),
    ),
    (EditQuality.BALANCED, Nearness.NEAR): (
        (0.06, (Policy(4, 3),)),
        (0.25, (Policy(3),)),
        (1.0, (Policy(6, 3),)),
    ),
    (EditQuality.BALANCED, Nearness.EMPTY): (
        (0.06, (Policy(4),)),
        (0.25, (Policy(4, 3), Policy(6, 5))),
        (1.0, (Policy(4, 3),)),
    ),
    (EditQuality.BEST, Nearness.OWN): ((0.25, (Policy(3),)), (1.0, (Policy(6, fifths=(4,)),))),
    (EditQuality.BEST, Nearness.NEAR): ((0.25, (Policy(4, 3),)), (1.0, (Policy(6, 2),))),
    (EditQuality.BEST, Nearness.EMPTY): (
        (0.06, (Policy(6),)),
        (0.25, (Policy(4, 2),)),
        (1.0, (Policy(6, 2),)),
    ),
}
"""The cheapest policies that reached a median SSIM of 0.95 (`balanced`) or 0.97 (`best`) in the
demo model, with a lower quartile of 0.9."""


_ADAPTED: dict[EditQuality, tuple[Policy, ...]] = {
    EditQuality.BALANCED: (Policy(4, 3),),
    EditQuality.BEST: (Policy(4, 2),),
}
"""Of small masks in edits with LoRAs, where a margin alone missed 0.95 (docs/internals/sparse.md).
"""

_SMALL = 0.06

CAREFUL = Policy(4, 2)
"""For edits in MODE `sparse` whose quality no policy reaches."""


@dataclass(frozen=True)
class Policies:
    """What edits do for their quality.

    Attributes:
        reached: the cheapest policies that reach `balanced` and `best`.
        measured: whether that was measured with the bundle, and not with the demo model.
    """

    reached: Reached
    measured: bool = False

    def of(
        self, quality: str, nearness: Nearness, ratio: float, *, adapted: bool = False
    ) -> tuple[Policy, ...]:
        """The policies that reach a quality, for an edit; none if only a dense edit does.

        Args:
            quality: one of `EDIT_QUALITIES`.
            nearness: of the recordings' prompts.
            ratio: share of the picture that is edited.
            adapted: whether the edit has LoRAs in the UNet.
        """
        if quality == EditQuality.FAST:
            return (FAST,)
        if adapted and nearness != Nearness.OWN:
            return ()
        if adapted and ratio <= _SMALL:
            return _ADAPTED[EditQuality(quality)]
        rows = self.reached[EditQuality(quality), nearness]
        return next(found for limit, found in rows if ratio <= limit)

    @property
    def table(self) -> dict[str, dict[str, Any]]:
        """All policies as a server's load tells them: by quality and nearness, lists of the largest
        share of the picture and of `Policy.told`.
        """
        fast: Reached = {(EditQuality.FAST, nearness): ((1.0, (FAST,)),) for nearness in Nearness}
        told: dict[str, dict[str, Any]] = {}
        for (quality, nearness), rows in {**fast, **self.reached}.items():
            told.setdefault(str(quality), {})[str(nearness)] = [
                [share, [policy.told for policy in found]] for share, found in rows
            ]
        return told


BUILT_IN = Policies(_REACHED)
"""Of bundles that nobody has measured."""

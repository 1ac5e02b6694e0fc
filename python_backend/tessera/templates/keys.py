"""What a recording depends on, and how near its prompt is to an edit's. Standard library only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tessera.contract import SCHEDULERS
from tessera.plan import AdapterUse, ControlUse, Plan


@dataclass(frozen=True, order=True)
class RecordedControl:
    """A ControlNet in a recording.

    Attributes:
        name: of the ControlNet.
        image: digest of the prepared control image.
        scale: multiplies its residuals.
        first, last: evaluations of the whole schedule between which it applies, without `last`.
        mode, guess_mode, pooled: see `ControlUse`.
    """

    name: str
    image: str
    scale: float
    first: int
    last: int
    mode: int | None = None
    guess_mode: bool = False
    pooled: bool = False

    @property
    def use(self) -> ControlUse:
        """The same, for all evaluations."""
        more: dict[str, Any] = {"guess_mode": self.guess_mode, "pooled": self.pooled}
        return ControlUse(self.name, self.scale, 0.0, 1.0, self.mode, **more)

    @property
    def report(self) -> dict[str, Any]:
        """As lists of recordings have it."""
        said: dict[str, Any] = {"name": self.name, "scale": self.scale, "image": self.image}
        said |= {"first": self.first, "last": self.last}
        if self.mode is not None:
            said["mode"] = self.mode
        return said | {"guess_mode": True} if self.guess_mode else said


def recorded_controls(
    uses: Sequence[ControlUse], evaluations: Sequence[int]
) -> tuple[RecordedControl, ...]:
    """What ControlNets are to a recording, sorted; those that change nothing are left out.

    Args:
        uses: with the digests of their images.
        evaluations: those that are run, among those of the whole schedule. Shares of the steps are
            shares of these. What is before them does not matter, so a ControlNet that applies from
            the first one on is recorded from the beginning.
    """
    found = []
    for use in uses:
        count = len(evaluations)
        applies = [i for i in range(count) if use.applies_at(i, count)]
        if use.scale and applies:
            first = evaluations[applies[0]] if applies[0] else 0
            span = first, evaluations[applies[-1]] + 1
            named = RecordedControl(use.name, use.image, use.scale, *span, use.mode)
            of_use: dict[str, Any] = {"guess_mode": use.guess_mode, "pooled": use.pooled}
            found.append(dataclasses.replace(named, **of_use))
    return tuple(sorted(found))


@dataclass(frozen=True)
class RecordingKey:
    """Everything that activations depend on.

    Attributes:
        bundle: digest of the bundle.
        template: the template's id, a digest of its size and pixels.
        scheduler, steps: determine how noisy the template is at each evaluation of the UNet.
        seed: seed of the template's noise.
        text: identifies the prompt (`texts.text_id`); empty for the empty one.
        adapters: the adapter set in the UNet.
        controls: ControlNets whose residuals are in it.
    """

    bundle: str
    template: str
    scheduler: str
    steps: int
    seed: int
    text: str = ""
    adapters: tuple[AdapterUse, ...] = ()
    controls: tuple[RecordedControl, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """As files have it: without a text, adapters or controls if there are none, as before
        there were any.
        """
        content = dataclasses.asdict(self)
        return {k: v for k, v in content.items() if v or k not in ("text", "adapters", "controls")}

    @classmethod
    def of_plan(cls, bundle: str, plan: Plan, seed: int) -> RecordingKey:
        """What an edit's template is recorded by, for the empty prompt."""
        controls = recorded_controls(plan.controls, plan.evaluations)
        of_plan = plan.template, plan.scheduler, plan.steps
        return cls(bundle, *of_plan, seed, "", plan.adapters, controls)

    @classmethod
    def from_fields(cls, content: Mapping[str, Any]) -> RecordingKey:
        """Inverse of `fields`.

        Raises:
            TypeError: they are another version's.
        """
        uses = tuple(AdapterUse(**use) for use in content.get("adapters", ()))
        controls = tuple(RecordedControl(**each) for each in content.get("controls", ()))
        return cls(**{**content, "adapters": uses, "controls": controls})

    def with_text(self, text: str) -> RecordingKey:
        """The same with another prompt."""
        return dataclasses.replace(self, text=text)

    def with_adapters(self, adapters: tuple[AdapterUse, ...]) -> RecordingKey:
        """The same with another adapter set."""
        return dataclasses.replace(self, adapters=adapters)

    def with_controls(self, controls: tuple[RecordedControl, ...]) -> RecordingKey:
        """The same with other ControlNets."""
        return dataclasses.replace(self, controls=controls)

    @property
    def of_negative(self) -> RecordingKey:
        """The same without the ControlNets that leave a negative branch alone."""
        return self.with_controls(tuple(c for c in self.controls if not c.use.of_prompt_only))

    @property
    def evaluations(self) -> int:
        """How many evaluations of the UNet are recorded, before some are left out."""
        return SCHEDULERS[self.scheduler].count(self.steps)

    @property
    def digest(self) -> str:
        """Name of the recording. Those that differ in their prompts only begin alike."""
        if self.text:
            return f"{self.with_text('').digest}-{self.text}"
        text = json.dumps(self.fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


class Nearness(StrEnum):
    """How near the prompts of recordings are to those of an edit; of several branches, the worst.

    `own`: the same. `near`: similar. `empty`: recorded with the empty prompt.
    """

    OWN = "own"
    NEAR = "near"
    EMPTY = "empty"

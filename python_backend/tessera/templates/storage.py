"""The forms in which activations are stored, and which form fits a byte budget.

A recording has one set of arrays per denoising step. It may keep every step or each k-th, the
others then use the last one kept; and it may keep numbers as float16 or int8. Both branches of
guidance always share one recording, since a template has no prompt (docs/internals/templates.md).
How numbers
are brought into a form: `templates.packing`. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["float32", "float16", "int8"]

_BYTES: dict[Kind, int] = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class Storage:
    """The form in which a recording keeps its numbers.

    Attributes:
        kind: type of the numbers. Statistics of norms are small and always float32.
        every: keep every `every`-th step.
    """

    kind: Kind = "float16"
    every: int = 1

    @property
    def name(self) -> str:
        """A short name, such as `int8/2`."""
        return f"{self.kind}/{self.every}"

    def kept(self, steps: int) -> list[int]:
        """The steps that are kept."""
        return list(range(0, steps, self.every))

    def source(self, step: int) -> int:
        """The kept step that stands for `step`."""
        return step - step % self.every

    def bytes(self, numbers_per_step: int, steps: int) -> int:
        """Bytes of a recording of `steps` steps with `numbers_per_step` numbers each."""
        return numbers_per_step * _BYTES[self.kind] * len(self.kept(steps))


CHOICES: Sequence[Storage] = (
    Storage("float16"),
    Storage("int8"),
    Storage("float16", 2),
    Storage("int8", 2),
    Storage("int8", 3),
    Storage("int8", 4),
    Storage("int8", 6),
    Storage("int8", 8),
)
"""From closest to the dense edit to smallest in bytes (measured by bench/edit_quality.py)."""


def choose_storage(numbers_per_step: int, steps: int, budget: int) -> Storage | None:
    """The best form that fits into `budget` bytes, or `None`."""
    fitting = (s for s in CHOICES if s.bytes(numbers_per_step, steps) <= budget)
    return next(fitting, None)

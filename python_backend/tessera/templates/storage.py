"""The forms in which activations are stored, and which form fits a byte budget.

A recording has one set of arrays per denoising step. It may keep every step, or every k-th; the
other steps then use the last kept one. It may keep numbers as float16 or int8. Both branches of a
guided request share one recording, since a template has no prompt (docs/internals/templates.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from tessera.types import Tensors

Kind = Literal["float32", "float16", "int8"]

_BYTES: dict[Kind, int] = {"float32": 4, "float16": 2, "int8": 1}
_SCALE = ".scale"


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


def pack(arrays: Tensors, kind: Kind) -> dict[str, torch.Tensor]:
    """Convert tensors to the form in which they are kept; int8 has one scale per row of the last
    axis.
    """
    packed: dict[str, torch.Tensor] = {}
    for name, array in arrays.items():
        if name.startswith("norm.") or kind == "float32":
            packed[name] = array.contiguous()
        elif kind == "float16":
            packed[name] = array.clamp(-65504, 65504).half().contiguous()
        else:
            scale = array.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
            packed[name] = (array / scale).round().to(torch.int8).contiguous()
            packed[name + _SCALE] = scale.contiguous()
    return packed


def take(arrays: Tensors, name: str, index: torch.Tensor) -> torch.Tensor:
    """Rows of a packed array along its first axis, as floats, on the array's device."""
    index = index.to(arrays[name].device)
    rows = arrays[name].index_select(0, index)
    if rows.dtype != torch.int8:
        return rows
    return rows * arrays[name + _SCALE].index_select(0, index)


def unpack(arrays: Tensors, name: str) -> torch.Tensor:
    """A whole packed array, as floats."""
    array = arrays[name]
    return array * arrays[name + _SCALE] if array.dtype == torch.int8 else array

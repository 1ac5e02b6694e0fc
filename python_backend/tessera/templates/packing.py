"""Activations into the form in which they are kept (`templates.storage`), and back."""

from __future__ import annotations

import torch

from tessera.templates.storage import Kind
from tessera.types import Tensors

_SCALE = ".scale"


def pack(arrays: Tensors, kind: Kind) -> dict[str, torch.Tensor]:
    """Tensors in the form in which they are kept: int8 with one scale per row of the last axis."""
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
    """Rows of a packed array along its first axis, as numbers, where the array lies."""
    index = index.to(arrays[name].device)
    rows = arrays[name].index_select(0, index)
    if rows.dtype != torch.int8:
        return rows
    return rows * arrays[name + _SCALE].index_select(0, index)


def unpack(arrays: Tensors, name: str) -> torch.Tensor:
    """A whole packed array, as numbers."""
    array = arrays[name]
    return array * arrays[name + _SCALE] if array.dtype == torch.int8 else array

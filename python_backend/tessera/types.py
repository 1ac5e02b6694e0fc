"""Type aliases that several packages share. Numpy is the only library that importing this loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array: TypeAlias = npt.NDArray[Any]
"""An array of any type; comments say its shape."""

Tensors: TypeAlias = "dict[str, torch.Tensor]"
"""Tensors by name."""

Conditions: TypeAlias = "Mapping[str, torch.Tensor]"
"""Inputs of the UNet beside sample and timestep, by name; one row per guidance branch."""

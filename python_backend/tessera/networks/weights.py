"""The weights inside a bundle's graphs, by their names in the checkpoint.

An initializer equals the checkpoint's weight of the same name, unless the graph's layout says that
it is transposed or reshaped. Knows ONNX files, nothing of engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from onnx import numpy_helper

if TYPE_CHECKING:
    from tessera.networks.modules import GraphModule

Layout = Mapping[str, Mapping[str, list[int]]]
"""By name of a weight: `perm` if its initializer is transposed, `shape` if it is reshaped."""


def to_layout(name: str, weight: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Convert a checkpoint's weight to the graph's initializer. The result is contiguous and may be
    the same tensor.
    """
    change = layout.get(name, {})
    if "perm" in change:
        return weight.permute(change["perm"]).contiguous()
    return weight.reshape(change.get("shape", weight.shape)).contiguous()


def from_layout(
    name: str, initializer: torch.Tensor, shape: Iterable[int], layout: Layout
) -> torch.Tensor:
    """The inverse of `to_layout`. `shape` is the weight's shape in the checkpoint."""
    change = layout.get(name, {})
    if "perm" in change:
        return initializer.permute([int(i) for i in np.argsort(change["perm"])]).contiguous()
    return initializer.reshape(tuple(shape)).contiguous()


def own_shape(name: str, shape: Iterable[int], layout: Layout) -> tuple[int, ...] | None:
    """Shape in the checkpoint of a weight whose initializer has the shape `shape`.

    Returns:
        `None` if the initializer is reshaped, since the layout does not have the original shape.
    """
    change, of_initializer = layout.get(name, {}), tuple(shape)
    if "perm" in change:
        return tuple(of_initializer[int(i)] for i in np.argsort(change["perm"]))
    return None if "shape" in change else of_initializer


def load_weights(module: GraphModule, graph: Path, layout: Layout) -> None:
    """Load the weights of a graph into a module of `new_network`.

    Raises:
        KeyError: the graph lacks a weight of the module.
    """
    initializers = Initializers(graph)
    state = {
        name: from_layout(name, initializers[name], weight.shape, layout)
        for name, weight in module.named_parameters()
    }
    module.load_state_dict(state, strict=False, assign=True)


class Initializers:
    """The initializers of a graph as tensors by name. Each access reads one from the file."""

    def __init__(self, graph: Path) -> None:
        self._folder = graph.parent
        model = onnx.load(str(graph), load_external_data=False)
        self._initializers = {i.name: i for i in model.graph.initializer}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an initializer."""
        return tuple(self._initializers[name].dims)

    def __getitem__(self, name: str) -> torch.Tensor:
        """A copy of an initializer."""
        array = numpy_helper.to_array(self._initializers[name], base_dir=str(self._folder))
        return torch.from_numpy(np.array(array))

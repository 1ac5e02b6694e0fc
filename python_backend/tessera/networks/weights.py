"""The weights inside a bundle's graphs, by the names they have in the checkpoint.

An initializer is the checkpoint's weight of the same name, except where the graph's layout map says
that it is transposed or reshaped.
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


def to_layout(name: str, weight: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A checkpoint's weight as the graph's initializer holds it, contiguous; perhaps the same
    tensor.
    """
    how = layout.get(name, {})
    if "perm" in how:
        return weight.permute(how["perm"]).contiguous()
    return weight.reshape(how.get("shape", weight.shape)).contiguous()


def from_layout(
    name: str, initializer: torch.Tensor, shape: Iterable[int], layout: Layout
) -> torch.Tensor:
    """The inverse of `to_layout`; `shape` is the weight's own."""
    how = layout.get(name, {})
    if "perm" in how:
        return initializer.permute([int(i) for i in np.argsort(how["perm"])]).contiguous()
    return initializer.reshape(tuple(shape)).contiguous()


def own_shape(name: str, shape: Iterable[int], layout: Layout) -> tuple[int, ...] | None:
    """Shape in the checkpoint of a weight whose initializer has the given one; `None` if the layout
    does not tell.
    """
    how, held = layout.get(name, {}), tuple(shape)
    if "perm" in how:
        return tuple(held[int(i)] for i in np.argsort(how["perm"]))
    return None if "shape" in how else held


def load_weights(module: GraphModule, graph: Path, layout: Layout) -> None:
    """Give a module of `new_network` the weights of its graph.

    Raises:
        KeyError: the graph lacks a weight of the module.
    """
    held = Initializers(graph)
    state = {
        name: from_layout(name, held[name], weight.shape, layout)
        for name, weight in module.named_parameters()
    }
    module.load_state_dict(state, strict=False, assign=True)


class Initializers:
    """Initializers of a graph as tensors by name, each read from the file when it is asked for."""

    def __init__(self, graph: Path) -> None:
        self._folder = graph.parent
        model = onnx.load(str(graph), load_external_data=False)
        self._held = {i.name: i for i in model.graph.initializer}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one."""
        return tuple(self._held[name].dims)

    def __getitem__(self, name: str) -> torch.Tensor:
        """A copy of one."""
        array = numpy_helper.to_array(self._held[name], base_dir=str(self._folder))
        return torch.from_numpy(np.array(array))

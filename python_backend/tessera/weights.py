"""The weights inside a bundle's graphs, by the names they have in the checkpoint.

An initializer is the checkpoint's weight of the same name, except where the graph's layout map says
that it is transposed or reshaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from tessera.modules import GraphModule

Layout = Mapping[str, Mapping[str, list[int]]]
Array = npt.NDArray[Any]


def to_layout(name: str, weight: Array, layout: Layout) -> Array:
    """A copy of a checkpoint's weight as the graph's initializer holds it."""
    how = layout.get(name, {})
    if "perm" in how:
        return np.ascontiguousarray(weight.transpose(how["perm"]))
    return np.array(weight.reshape(how["shape"]) if "shape" in how else weight)


def from_layout(name: str, initializer: Array, shape: tuple[int, ...], layout: Layout) -> Array:
    """The inverse of `to_layout`; `shape` is the weight's own."""
    how = layout.get(name, {})
    if "perm" in how:
        return np.ascontiguousarray(initializer.transpose(np.argsort(how["perm"])))
    return np.array(initializer.reshape(shape))


def load_weights(module: GraphModule, graph: Path, layout: Layout) -> None:
    """Give a module of `new_network` the weights of its graph.

    Raises:
        KeyError: the graph lacks a weight of the module.
    """
    model = onnx.load(str(graph))
    held = {i.name: i for i in model.graph.initializer}
    state = {
        name: torch.from_numpy(
            from_layout(name, numpy_helper.to_array(held[name]), tuple(weight.shape), layout)
        )
        for name, weight in module.named_parameters()
    }
    module.load_state_dict(state, strict=False, assign=True)

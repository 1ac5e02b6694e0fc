"""The weights inside a bundle's graphs, by their names in the checkpoint.

A graph computes in float32. A weight has the *graph's layout* where the graph uses it: that of the
checkpoint, unless the graph's layout says that it is transposed or reshaped. In the file it may be
*stored* differently, since graphs share their weights: in half precision, or in the layout of
another graph. Then `Cast`, `Transpose` and `Reshape` follow it, which an engine evaluates once. The
outputs of these nodes are named after the weight, with an `@`.

Knows ONNX files, nothing of engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import NodeProto, TensorProto, numpy_helper

if TYPE_CHECKING:
    from tessera.networks.modules import GraphModule

Layout = Mapping[str, Mapping[str, list[int]]]
"""By name of a weight: `perm` if its initializer is transposed, `shape` if it is reshaped."""
Place = tuple[int, ...]
"""Identity of a file, and the offset of a weight in it."""

STEP = "@"
DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
"""The types in which weights are stored."""
_ALIGNED = 64


def to_layout(name: str, weight: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Convert a checkpoint's weight to the graph's layout. The result is contiguous and may be the
    same tensor.
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
    """Shape in the checkpoint of a weight that has the shape `shape` in the graph.

    Returns:
        `None` if the weight is reshaped, since the layout does not have the original shape.
    """
    change, of_initializer = layout.get(name, {}), tuple(shape)
    if "perm" in change:
        return tuple(of_initializer[int(i)] for i in np.argsort(change["perm"]))
    return None if "shape" in change else of_initializer


def load_weights(module: GraphModule, graph: Path, layout: Layout) -> None:
    """Load the weights of a graph into a module of `new_network`, as they are stored.

    Raises:
        KeyError: the graph lacks a weight of the module.
    """
    initializers = Initializers(graph)
    state = {
        name: from_layout(name, initializers[name], weight.shape, layout)
        for name, weight in module.named_parameters()
    }
    module.load_state_dict(state, strict=False, assign=True)


def steps_of(model: onnx.ModelProto) -> dict[str, list[NodeProto]]:
    """By name of a stored weight: the nodes that follow it, in order; see the module."""
    steps: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        name, step, _ = (node.output[0] if node.output else "").partition(STEP)
        if step and node.input[0].partition(STEP)[0] == name:
            steps.setdefault(name, []).append(node)
    return steps


class Initializers:
    """The weights of a graph as tensors by name: in the graph's layout, in the type in which they
    are stored.

    Those outside of the .onnx file are mapped into memory. So processes and engines share what they
    do not overwrite.
    """

    def __init__(self, graph: Path) -> None:
        self._folder = graph.parent
        model = onnx.load(str(graph), load_external_data=False)
        self._initializers = {i.name: i for i in model.graph.initializer}
        self._steps = steps_of(model)
        self._files: dict[str, npt.NDArray[np.uint8]] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight in the graph's layout."""
        # An expanded number has the shape, and no memory.
        number = torch.zeros(()).expand(list(self._initializers[name].dims))
        return tuple(self._laid_out(name, number).shape)

    def places(self) -> dict[str, Place]:
        """Where those weights are stored that are outside of the .onnx file, by name."""
        places, files = {}, dict[str, Place]()
        for name, initializer in self._initializers.items():
            if initializer.external_data:
                location, offset = _location(initializer)
                if location not in files:
                    stat = (self._folder / location).stat()
                    files[location] = (stat.st_dev, stat.st_ino, stat.st_mtime_ns)
                places[name] = (*files[location], offset)
        return places

    def __contains__(self, name: str) -> bool:
        return name in self._initializers

    def __getitem__(self, name: str) -> torch.Tensor:
        """A weight. It may be overwritten, which changes no file."""
        return self._laid_out(name, self._stored(self._initializers[name]))

    def _laid_out(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        for node in self._steps.get(name, ()):
            if node.op_type == "Transpose":
                weight = weight.permute(*node.attribute[0].ints)
            elif node.op_type == "Reshape":
                shape = numpy_helper.to_array(self._initializers[node.input[1]])
                weight = weight.reshape(*shape.tolist())
        return weight

    def _stored(self, initializer: TensorProto) -> torch.Tensor:
        shape, dtype = tuple(initializer.dims), DTYPES.get(initializer.data_type)
        if dtype is None:  # not a weight
            array = numpy_helper.to_array(initializer, base_dir=str(self._folder))
            return torch.from_numpy(np.array(array))
        if initializer.external_data:
            location, offset = _location(initializer)
            count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            content = self._file(location)[offset : offset + count]
            if offset % _ALIGNED:
                content = np.array(content)
            return torch.from_numpy(content).view(dtype).reshape(shape)
        raw = initializer.raw_data or numpy_helper.to_array(initializer).tobytes()
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)

    def _file(self, location: str) -> npt.NDArray[np.uint8]:
        if location not in self._files:
            mapped: Any = np.memmap(self._folder / location, np.uint8, mode="c")
            self._files[location] = mapped.view(np.ndarray)
        return self._files[location]


def _location(initializer: TensorProto) -> tuple[str, int]:
    entries = {entry.key: entry.value for entry in initializer.external_data}
    return entries["location"], int(entries.get("offset", 0))

"""Writes graphs with their weights, which graphs of one network share. Knows ONNX files only.

The weights are written one after the other, each converted just before. So a file of any size takes
no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tessera.networks.weights import DTYPES, STEP, Layout, to_layout

_ONNX_TYPES = {dtype: onnx_type for onnx_type, dtype in DTYPES.items()}
_LARGE = 2**20
_INSIDE = 2**10
"""Bytes up to which a weight is always inside the .onnx file."""
_MOST_INSIDE = 2**30
"""Bytes of weights inside one .onnx file: protobuf takes no file above 2 GiB."""


@dataclass(frozen=True)
class Stored:
    """Weights that are in the external data of graphs in the same folder.

    Attributes:
        initializers: the weights, by name.
        layout: in which they are stored.
        graphs: name of each weight's graph.
    """

    initializers: dict[str, TensorProto] = field(default_factory=dict)
    layout: dict[str, Mapping[str, list[int]]] = field(default_factory=dict)
    graphs: dict[str, str] = field(default_factory=dict)

    def add(self, initializer: TensorProto, layout: Mapping[str, list[int]], graph: str) -> None:
        """Add a weight that a graph has stored."""
        self.initializers[initializer.name] = initializer
        self.layout[initializer.name] = layout
        self.graphs[initializer.name] = graph


def write_graph(
    graph: onnx.ModelProto,
    weights: Mapping[str, torch.Tensor],
    layout: Layout,
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    external: bool = False,
    shared: Stored | None = None,
) -> list[str]:
    """Write a graph, its weights stored in a precision that it may not compute in.

    Args:
        graph: what `export.capture_graph` returns. It is changed.
        weights: the checkpoint's weights by name, in any floating-point type.
        layout: the graph's layout.
        path: the .onnx file.
        dtype: type in which weights are stored; that of `weights` by default.
        external: whether weights are stored in a file beside it (.onnx.data). Weights that are too
            large for one file always are.
        shared: weights that other graphs have stored in this type. Those that this graph stores in
            a file beside it are added.

    Returns:
        Names of the graphs in whose external data its weights are.
    """
    shared = Stored() if shared is None else shared
    computes = {i.name: i.type.tensor_type.elem_type for i in graph.graph.input}
    _replace(graph.graph.input, [i for i in graph.graph.input if i.name not in weights])
    steps, ends = list[NodeProto](), dict[str, str]()
    used: dict[str, None] = {}
    total = sum(w.numel() * (dtype or w.dtype).itemsize for w in weights.values())
    with ExitStack() as stack:
        data = _Data(stack, path, external=external or total > _MOST_INSIDE)
        for name, weight in weights.items():
            chain = _Chain(name)
            stored_as = _stored_as(name, layout, shared)
            if stored_as is None:
                rounded = weight.detach().to(dtype or weight.dtype)
                initializer = data.store(name, to_layout(name, rounded, layout))
                if initializer.external_data:
                    shared.add(initializer, layout.get(name, {}), path.stem)
            else:
                initializer = shared.initializers[name]
                used[shared.graphs[name]] = None
                shape = tuple(to_layout(name, weight.to("meta"), layout).shape)
                chain.relay(stored_as, layout.get(name, {}), shape)
            if computes[name] != initializer.data_type:
                chain.cast(computes[name])
            graph.graph.initializer.extend([initializer, *chain.constants])
            steps += chain.nodes
            ends[name] = chain.end
    _rename(graph, ends)
    _replace(graph.graph.node, [*steps, *graph.graph.node])
    path.write_bytes(graph.SerializeToString(deterministic=True))
    return list(used)


def _replace(field: Any, elements: Sequence[Any]) -> None:
    """Replace the elements of a repeated field."""
    del field[:]
    field.extend(elements)


def _stored_as(name: str, layout: Layout, shared: Stored) -> Mapping[str, list[int]] | None:
    """The layout in which a weight is stored; `None` if it cannot be used from there."""
    if name not in shared.initializers:
        return None
    stored, own = shared.layout[name], layout.get(name, {})
    mixed = ("perm" in stored) != ("perm" in own) and ("shape" in stored or "shape" in own)
    return None if mixed else stored


class _Chain:
    """The nodes between a stored weight and the graph that uses it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.end = name
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def relay(
        self, stored: Mapping[str, list[int]], own: Mapping[str, list[int]], shape: tuple[int, ...]
    ) -> None:
        """Go from the layout in which a weight is stored to the graph's own."""
        if stored == own:
            return
        if "perm" in stored or "perm" in own:
            axes = range(len(shape))
            inverse = np.argsort(stored.get("perm", axes))
            self._add("Transpose", "layout", perm=[int(inverse[i]) for i in own.get("perm", axes)])
            return
        constant = f"{self._name}{STEP}shape"
        self.constants.append(numpy_helper.from_array(np.array(shape, np.int64), constant))
        self._add("Reshape", "layout", constant)

    def cast(self, to: int) -> None:
        """Go to the type in which the graph computes."""
        self._add("Cast", "type", to=to)

    def _add(self, kind: str, step: str, *inputs: str, **attributes: Any) -> None:
        output = f"{self._name}{STEP}{step}"
        self.nodes.append(helper.make_node(kind, [self.end, *inputs], [output], **attributes))
        self.end = output


class _Data:
    """Where the weights of one graph are stored."""

    def __init__(self, stack: ExitStack, path: Path, *, external: bool) -> None:
        self._path = path.with_name(f"{path.name}.data")
        self._stack, self._external = stack, external
        self._file: BinaryIO | None = None
        self._end = 0

    def store(self, name: str, weight: torch.Tensor) -> TensorProto:
        """Store a weight; returns its initializer."""
        kind = _ONNX_TYPES[weight.dtype]
        initializer = TensorProto(name=name, data_type=kind, dims=weight.shape)
        content = weight.reshape(-1).view(torch.uint8).numpy()
        if not self._external or content.nbytes <= _INSIDE:
            initializer.raw_data = content.tobytes()
            return initializer
        if self._file is None:
            self._file = self._stack.enter_context(self._path.open("wb"))
        alignment = 4096 if content.nbytes >= _LARGE else 64  # pages, for those who map the file
        self._file.write(bytes(-self._end % alignment))
        self._end += -self._end % alignment
        initializer.data_location = TensorProto.EXTERNAL
        place = {"location": self._path.name, "offset": self._end, "length": content.nbytes}
        for key, value in place.items():
            initializer.external_data.add(key=key, value=str(value))
        self._file.write(content.data)
        self._end += content.nbytes
        return initializer


def _rename(graph: onnx.ModelProto, ends: Mapping[str, str]) -> None:
    """Let nodes use what the chains of weights end with."""
    for node in graph.graph.node:
        for index, used in enumerate(node.input):
            if ends.get(used, used) != used:
                node.input[index] = ends[used]

"""Shares a file of weights between two graphs of one network. Knows ONNX files only."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper


def share_weights(graph: Path, owner: Path) -> None:
    """Let a graph use the external data of another graph for equal initializers.

    The graph's own external data is deleted if nothing refers to it any more.

    Args:
        graph: the .onnx file to change.
        owner: an .onnx file in the same folder. Initializers with the same name and content as one
            of its external ones will refer to its data.
    """
    model = onnx.load(str(graph), load_external_data=False)
    shared = {i.name: i for i in onnx.load(str(owner), load_external_data=False).graph.initializer}
    for initializer in model.graph.initializer:
        other = shared.get(initializer.name)
        if other is not None and _is_external(other) and _equal(initializer, other, graph.parent):
            initializer.CopyFrom(other)
    files = {e.value for i in model.graph.initializer for e in i.external_data}
    data = graph.with_name(f"{graph.name}.data")
    graph.write_bytes(model.SerializeToString())
    if data.name not in files:
        data.unlink(missing_ok=True)


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _equal(one: TensorProto, other: TensorProto, folder: Path) -> bool:
    if (one.data_type, list(one.dims)) != (other.data_type, list(other.dims)):
        return False
    arrays = [numpy_helper.to_array(t, base_dir=str(folder)) for t in (one, other)]
    return arrays[0].tobytes() == arrays[1].tobytes()

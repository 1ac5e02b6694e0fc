"""Two graphs of one network: the second refers to the first one's file of weights."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper


def share_weights(graph: Path, owner: Path) -> None:
    """Have `graph` (.onnx) refer to the external data of `owner`, in the same folder, wherever it
    holds an initializer of the same name and content; its own external data is deleted if nothing
    refers to it any more.
    """
    model = onnx.load(str(graph), load_external_data=False)
    lent = {i.name: i for i in onnx.load(str(owner), load_external_data=False).graph.initializer}
    for initializer in model.graph.initializer:
        other = lent.get(initializer.name)
        if other is not None and _is_external(other) and _equal(initializer, other, graph.parent):
            initializer.CopyFrom(other)
    files = {e.value for i in model.graph.initializer for e in i.external_data}
    own = graph.with_name(f"{graph.name}.data")
    graph.write_bytes(model.SerializeToString())
    if own.name not in files:
        own.unlink(missing_ok=True)


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _equal(one: TensorProto, other: TensorProto, folder: Path) -> bool:
    if (one.data_type, list(one.dims)) != (other.data_type, list(other.dims)):
        return False
    arrays = [numpy_helper.to_array(t, base_dir=str(folder)) for t in (one, other)]
    return arrays[0].tobytes() == arrays[1].tobytes()

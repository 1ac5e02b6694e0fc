"""Exports a torch module as an ONNX graph in which every weight keeps its name.

torch's exporter may transpose, fold and rename weights. A refittable graph needs one initializer
per parameter, with the parameter's name. So the graph is exported without optimisation. Layout
operators directly on a parameter are folded into its layout and recorded, so that a weight can be
converted to it. Everything that does not involve a parameter is then
constant-folded as usual. Passes that would merge equal parameters or drop zero biases are left out
on purpose.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import opset20 as op
from onnxscript.optimizer._constant_folding import FoldConstantsPass

from tessera_build.stored import write_graph
from tessera_build.trace import Axes, trace_graph

OPSET = 20
"""TensorRT 10.8 cannot parse the GroupNormalization of opset 21; below 18 ONNX Runtime rejects
Split."""

Layout = dict[str, dict[str, list[int]]]
_MOVES = {"Transpose", "Unsqueeze", "Squeeze", "Reshape"}


@dataclass(frozen=True)
class Signature:
    """Example inputs, names and dynamic axes of a module.

    Attributes:
        example: example inputs, with a batch of two, so that no axis is mistaken for a constant.
        inputs, outputs: names of inputs and outputs.
        dynamic: dynamic axes in the form of torch.export.
        axes: dynamic axes by name, for a module that is traced instead (see `trace`).
    """

    example: tuple[torch.Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: tuple[Any, ...] = ()
    axes: Axes | None = None


def export_graph(module: torch.nn.Module, signature: Signature, path: Path) -> Layout:
    """Export a module with its weights, which are stored in the type that it computes in.

    Args:
        module: the module.
        signature: its inputs and outputs.
        path: the .onnx file to write.

    Returns:
        How weights differ in layout from the module's parameters.

    Raises:
        RuntimeError: a parameter has no initializer of its name in the graph.
    """
    graph, layout = capture_graph(module, signature)
    write_graph(graph, dict(module.named_parameters()), layout, path)
    return layout


def capture_graph(module: torch.nn.Module, signature: Signature) -> tuple[onnx.ModelProto, Layout]:
    """Export a module without its weights, which are inputs of the graph.

    Returns:
        The graph, and how weights differ in layout from the module's parameters.

    Raises:
        RuntimeError: a parameter has no initializer of its name in the graph.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _capture(module, signature)
    parameters = {name for name, _ in module.named_parameters()}
    layout = _fold_layouts(model, parameters)
    _fold_constants(model, parameters)
    layout |= _fold_layouts(model, parameters - set(layout))
    passes.RemoveUnusedNodesPass()(model)
    lost = sorted(parameters - set(model.graph.initializers))
    if lost:
        raise RuntimeError(f"{len(lost)} parameters lost in export, first {lost[0]}")
    passes.ClearMetadataAndDocStringPass()(model)  # they have stack traces with local paths
    for name, _ in module.named_parameters():
        weight = model.graph.initializers.pop(name)
        weight.const_value = None
        model.graph.inputs.append(weight)
    return ir.to_proto(model), layout


@contextlib.contextmanager
def hollow(module: torch.nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Give a module parameters of zeros that take no memory, in the type in which it is to compute.

    The pages of such zeros exist only once they are written.
    """
    held = {parameter: parameter.data for parameter in module.parameters()}
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    try:
        for parameter in held:
            parameter.data = torch.from_numpy(np.zeros(parameter.shape, kind))
        yield
    finally:
        for parameter, data in held.items():
            parameter.data = data


def _capture(module: torch.nn.Module, signature: Signature) -> ir.Model:
    if signature.axes is not None:
        return trace_graph(
            module,
            signature.example,
            inputs=signature.inputs,
            outputs=signature.outputs,
            axes=signature.axes,
            opset=OPSET,
        )
    # Without this, torch.onnx.export traces some of these modules twice, the second time through
    # dynamo. That takes more than twice as long and gives the same result.
    traced = torch.export.export(
        module, signature.example, dynamic_shapes=signature.dynamic, strict=False
    )
    program = torch.onnx.export(
        traced,
        dynamo=True,
        optimize=False,
        opset_version=OPSET,
        verbose=False,
        input_names=list(signature.inputs),
        output_names=list(signature.outputs),
        custom_translation_table={
            torch.ops.aten.scaled_dot_product_attention.default: _attention,
        },
    )
    assert program is not None
    return program.model


def _attention(
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    attn_mask: ir.Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> ir.Value:
    """Torch's scaled_dot_product_attention in plain operators.

    The exporter's translation transposes the keys with ten operators, through shapes that are
    computed in every call.
    """
    if is_causal or enable_gqa or dropout_p:
        raise NotImplementedError("attention with is_causal, enable_gqa or dropout")
    factor = scale if scale is not None else float(query.shape[-1]) ** -0.5  # type: ignore[index, arg-type]
    scores = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        if attn_mask.dtype == ir.DataType.BOOL:
            lowest = op.Constant(value=ir.tensor(-np.inf, dtype=query.dtype))
            scores = op.Where(attn_mask, scores, lowest)
        else:
            scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _fold_layouts(model: ir.Model, parameters: set[str]) -> Layout:
    """Fold transposes and reshapes of a parameter into its initializer; returns the changes."""
    graph, layout = model.graph, Layout()
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if source is None or node.op_type not in _MOVES or source.name not in parameters:
            continue
        if source.name in layout or len(list(source.uses())) != 1:
            continue  # a shared parameter keeps its operators
        assert source.const_value is not None, f"{source.name} has no value"
        moved, change = _moved(node, source.const_value)
        if change is None:
            continue
        value = ir.Value(
            name=source.name,
            shape=ir.Shape(moved.shape),
            type=ir.TensorType(source.const_value.dtype),
            const_value=ir.tensor(moved, name=source.name),
        )
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        graph.remove(node, safe=True)
        del graph.initializers[source.name]
        graph.initializers[source.name] = value
        layout[source.name] = change
    return layout


def _moved(
    node: ir.Node, weight: ir.TensorProtocol
) -> tuple[npt.NDArray[Any], dict[str, list[int]] | None]:
    """Zeros in the shape of a parameter after a layout operator, and the change for the layout;
    `None` if the operator's argument is not constant. Values do not matter here, and zeros that
    nobody writes take no memory.
    """
    array: npt.NDArray[Any] = np.zeros(weight.shape.numpy(), weight.dtype.numpy())
    if node.op_type == "Transpose":
        perm = (
            node.attributes["perm"].as_ints()
            if "perm" in node.attributes
            else range(array.ndim)[::-1]
        )
        return array.transpose(list(perm)), {"perm": [int(p) for p in perm]}
    argument = _constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if argument is None:
        return array, None
    if node.op_type == "Unsqueeze":
        array = np.expand_dims(array, tuple(argument))
    elif node.op_type == "Squeeze":
        array = np.squeeze(array, tuple(argument))
    else:
        array = array.reshape(argument)
    return array, {"shape": list(array.shape)}


def _constant_ints(value: ir.Value | None) -> list[int] | None:
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if constant is None else [int(v) for v in np.atleast_1d(constant.numpy())]


def _fold_constants(model: ir.Model, parameters: set[str]) -> None:
    """Evaluate nodes that depend on no parameter and no input, and remove unused ones."""

    def keep_parameters(node: ir.Node) -> bool | None:
        return False if any(i is not None and i.name in parameters for i in node.inputs) else None

    folding = FoldConstantsPass(
        shape_inference=True,
        input_size_limit=8192,
        output_size_limit=512 * 512,
        should_fold=keep_parameters,
    )
    ir.passes.Sequential(
        passes.InlinePass(),
        ir.passes.PassManager(
            [
                folding,
                passes.RemoveUnusedNodesPass(),
                passes.RemoveUnusedFunctionsPass(),
                passes.RemoveUnusedOpsetsPass(),
            ],
            steps=2,
            early_stop=True,
        ),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)

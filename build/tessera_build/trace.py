"""Torch module -> ONNX graph by tracing, for graphs with hundreds of inputs of dynamic shape.

torch.export reasons about every shape symbolically: for the sparse UNet's tables and caches that
takes minutes of a CPU (SDXL's topology: 86 s), a trace of the same module 5 s. The parameters are
traced as inputs, so that each keeps its name and none is merged with an equal one, and are made
initializers afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import torch

Axes = Mapping[str, Mapping[int, str]]


def trace_graph(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    axes: Axes,
    opset: int,
) -> ir.Model:
    """The graph, with the module's parameters as initializers.

    Args:
        module: in evaluation mode.
        example: its inputs.
        inputs: their names.
        outputs: names of what it returns.
        axes: dynamic axes by name of the input or output; axes of one name have one length.
        opset: of the graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        module.training = True  # of this module alone: only then equal parameters are not merged
        try:
            torch.onnx.export(
                module,
                example,
                str(path),
                dynamo=False,
                export_params=False,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: dict(named) for name, named in axes.items()},
            )
        finally:
            module.training = False
        model = ir.load(path)
    for name, parameter in module.named_parameters():
        _make_initializer(model, name, parameter.detach())
    return model


def _make_initializer(model: ir.Model, name: str, value: torch.Tensor) -> None:
    found = next((i for i in model.graph.inputs if i.name == name), None)
    if found is None:
        return  # whoever checks that no parameter is lost says so
    model.graph.inputs.remove(found)
    found.const_value = ir.tensor(value, name=name)
    model.graph.initializers[name] = found

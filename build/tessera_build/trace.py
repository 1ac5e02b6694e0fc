"""Exports a torch module as an ONNX graph by tracing, for graphs with hundreds of dynamic inputs.

torch.export reasons about every shape symbolically. For the sparse UNet's tables and caches that
takes minutes of CPU time (SDXL's topology: 86 s). A trace of the same module takes 5 s.

Parameters are traced as inputs, so that each keeps its name and none is merged with an equal one.
Afterwards they become initializers.
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
    """Trace a module; returns the graph with the module's parameters as initializers.

    Args:
        module: the module, in evaluation mode.
        example: example inputs.
        inputs: names of the inputs.
        outputs: names of the outputs.
        axes: dynamic axes by name of the input or output. Axes with equal names have equal lengths.
        opset: ONNX opset of the graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        module.training = True  # on this module only: else equal parameters would be merged
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
    parameter = next((i for i in model.graph.inputs if i.name == name), None)
    if parameter is None:
        return  # `export_graph` reports lost parameters
    model.graph.inputs.remove(parameter)
    parameter.const_value = ir.tensor(value, name=name)
    model.graph.initializers[name] = parameter

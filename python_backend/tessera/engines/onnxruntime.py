"""The `onnxruntime` engine: an ONNX graph on the CPU.

The default on a machine without a GPU. It computes in float32; weights stored in half precision are
expanded when a graph is opened. A refittable graph takes the weights of its matrix products
(linear layers, 1x1 convolutions) as additional inputs. They are bound once and overwritten in
place, which costs 3 % of a UNet step. For larger convolutions it would cost another 11 %, since
ONNX Runtime then cannot repack their weights. Refitting one of these opens the session again with
the new weights instead. So does refitting a bias, norm or embedding.

If products have few rows, as in the sparse UNet, unpacked weights cost 10 to 20 % of a step. Such a
graph is opened `packed`, and its weights become inputs with the first refit, which changes the
rounding of its outputs. From then on, and in all other graphs, they depend only on the weights, not
on the way they were set.

ONNX Runtime's telemetry is off. Since 1.29 its packages for Linux have sent events to its makers by
default; `ORT_DISABLE_TELEMETRY=0` in the environment leaves that on.

Knows ONNX Runtime, nothing of requests or adapters.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from tessera.engines.base import EngineInfo, check_refit, failed
from tessera.errors import InternalError
from tessera.networks.weights import Initializers, Layout, own_shape, steps_of, to_layout

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it is read when the library is loaded
import onnxruntime as ort

ort.set_default_logger_severity(3)
_PRODUCTS = ("MatMul", "Gemm", "Conv")


class OnnxRuntimeEngine:
    """One session on the CPU provider.

    Args:
        graph: the .onnx file, with external data in the same folder.
        layout: how its initializers differ from the checkpoint's weights.
        threads: threads of one call; 0 means one per core.
        refittable: whether its weights can be replaced.
        packed: whether ONNX Runtime may repack all weights until the first refit. That refit then
            takes as long as opening the session again.
    """

    def __init__(
        self,
        graph: Path,
        *,
        layout: Layout | None = None,
        threads: int = 0,
        refittable: bool = False,
        packed: bool = False,
    ) -> None:
        self._graph = graph
        self._layout = layout or {}
        self._threads = threads
        self._bound: dict[str, ort.OrtValue] = {}
        self._ends: dict[str, str] = {}
        self._built_in: dict[str, torch.Tensor] = {}
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self._packed = packed
        if refittable:
            self._find_weights()
        self._open()

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`. Inputs are integers, as the graph declares, or of any floating type,
        which is cast to float32.
        """
        feed = {name: _fed(tensor) for name, tensor in inputs.items()}
        if missing := sorted(self._inputs - feed.keys()):  # the last call's is still bound
            raise InternalError(f"ONNX Runtime failed: input {missing[0]} is missing")
        try:
            for name, array in feed.items():
                self._binding.bind_cpu_input(name, array)
            for name in self._outputs:
                self._binding.bind_output(name)  # for every call, since sizes differ
            self._session.run_with_iobinding(self._binding)
            outputs = self._binding.copy_outputs_to_cpu()
        except Exception as error:  # onnxruntime has no common base for its errors
            raise failed("ONNX Runtime", error) from error
        return {
            name: torch.from_numpy(array)
            for name, array in zip(self._outputs, outputs, strict=True)
        }

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Engine.refit`."""
        check_refit(weights, self._shapes)
        rebuilt = self._packed
        if self._packed:
            self._packed = False
            self._find_weights()
        for name, weight in weights.items():
            laid_out = to_layout(name, weight.detach().to("cpu", torch.float32), self._layout)
            if name in self._bound:
                self._bound[name].update_inplace(laid_out.numpy())
            else:
                self._built_in[name] = laid_out.clone()
                rebuilt = True
        if rebuilt:
            self._open()

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        return EngineInfo(
            kind="onnxruntime",
            device="cpu",
            inputs={
                i.name: _shape(i.shape)
                for i in self._session.get_inputs()
                if i.name in self._inputs
            },
            outputs={o.name: _shape(o.shape) for o in self._session.get_outputs()},
            refittable=frozenset(self._shapes),
        )

    def _open(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # After a run, threads must not keep spinning: the next run belongs to another session.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", _utf8(self._graph.parent)
        )
        replaced = self._bound or self._built_in
        model = self._with_weights() if replaced else _utf8(self._graph)
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._inputs = {i.name for i in self._session.get_inputs()} - set(self._ends.values())
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._binding = self._session.io_binding()
        for name, value in self._bound.items():
            self._binding.bind_ortvalue_input(self._ends[name], value)

    def _find_weights(self) -> None:
        """Find the weights that can be replaced, and bind those that become inputs."""
        model, weights = self._load(), Initializers(self._graph)
        named = [i.name for i in model.graph.initializer if i.name.endswith((".weight", ".bias"))]
        self._shapes = {n: self._shape_of(n, weights.shape(n)) for n in named}
        for name in _weights_of_products(model):
            shape = weights.shape(name)
            several_points = math.prod(shape[2:]) > 1  # a convolution's
            if not several_points and not self._packed:
                array = weights[name].float().contiguous().numpy()
                self._bound[name] = ort.OrtValue.ortvalue_from_numpy(array)

    def _shape_of(self, name: str, in_graph: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of a weight in the checkpoint; `None` if it is unknown."""
        shape = own_shape(name, in_graph, self._layout)
        of_norm = shape is None and len(in_graph) == 3 and in_graph[1:] == (1, 1)
        return in_graph[:1] if of_norm else shape

    def _with_weights(self) -> bytes:
        """The graph, with bound weights declared as inputs and replaced weights built in, both in
        the layout and the precision in which the graph uses them.
        """
        model = self._load()
        steps = steps_of(model)
        replaced = self._bound.keys() | self._built_in.keys()
        dropped = {node.output[0] for name in replaced for node in steps.get(name, ())}
        nodes = [n for n in model.graph.node if n.output[0] not in dropped]
        initializers = [i for i in model.graph.initializer if i.name not in replaced]
        for field, kept in ((model.graph.node, nodes), (model.graph.initializer, initializers)):
            del field[:]
            field.extend(kept)
        for name, value in self._bound.items():
            end = self._ends[name] = _end(name, steps)
            info = onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, value.shape())
            model.graph.input.append(info)
        for name, weight in self._built_in.items():
            array = weight.numpy()
            model.graph.initializer.append(numpy_helper.from_array(array, _end(name, steps)))
        return bytes(model.SerializeToString())

    def _load(self) -> onnx.ModelProto:
        return onnx.load(str(self._graph), load_external_data=False)


def _fed(tensor: torch.Tensor) -> npt.NDArray[Any]:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    array: npt.NDArray[Any] = tensor.to("cpu", dtype).contiguous().numpy()
    return array


def _utf8(path: Path) -> str:
    """A path in the encoding that ONNX Runtime expects, whatever the process's is."""
    return os.fsencode(path).decode()


def _end(name: str, steps: Mapping[str, list[onnx.NodeProto]]) -> str:
    """What a graph calls a weight where it uses it."""
    return str(steps[name][-1].output[0]) if name in steps else name


def _weights_of_products(model: onnx.ModelProto) -> list[str]:
    """Weights of matrix products and convolutions, directly or reshaped."""
    initializers = {i.name for i in model.graph.initializer}
    steps = steps_of(model)
    names = {_end(name, steps): name for name in initializers}
    shaped = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Reshape"}
    products = [n for n in model.graph.node if n.op_type in _PRODUCTS]
    used = {i if i in names else shaped.get(i, i): None for n in products for i in n.input}
    return [names[i] for i in used if i in names and names[i].endswith(".weight")]


def _shape(dims: list[int | str]) -> tuple[int | None, ...]:
    return tuple(d if isinstance(d, int) else None for d in dims)

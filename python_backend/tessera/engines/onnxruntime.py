"""The `onnxruntime` engine: an ONNX graph on the CPU.

The default on a machine without a GPU. A refittable graph takes the weights of its matrix products
(linear layers, 1x1 convolutions) as additional inputs. They are bound once and overwritten in
place, which costs 3 % of a UNet step. For larger convolutions it would cost another 11 %, since
ONNX Runtime then cannot repack their weights. Refitting one of these opens the session again with
the new weights instead.

If products have few rows, as in the sparse UNet, unpacked weights cost 10 to 20 % of a step. Such a
graph is opened `packed`, and its weights become inputs with the first refit. In every case the
outputs depend only on the weights, not on the way they were set.

Knows ONNX Runtime, nothing of requests or adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper

from tessera.engines.base import EngineInfo, check_refit
from tessera.errors import InternalError
from tessera.networks.weights import Layout, own_shape, to_layout

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
        self._built_in: dict[str, torch.Tensor] = {}
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self._packed = packed
        if refittable:
            self._find_weights()
        self._open()

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`. Inputs are float32 or integers, as the graph declares."""
        feed = {name: tensor.cpu().contiguous().numpy() for name, tensor in inputs.items()}
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
            raise InternalError(f"ONNX Runtime failed: {error}") from error
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
                if i.name not in self._bound
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
            "session.model_external_initializers_file_folder_path", str(self._graph.parent)
        )
        model = self._with_weights() if self._bound else str(self._graph)
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._inputs = {i.name for i in self._session.get_inputs()} - self._bound.keys()
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._binding = self._session.io_binding()
        for name, value in self._bound.items():
            self._binding.bind_ortvalue_input(name, value)

    def _find_weights(self) -> None:
        """Find the weights that can be replaced, and bind those that become inputs."""
        model = onnx.load(str(self._graph), load_external_data=False)
        initializers = {i.name: i for i in model.graph.initializer}
        for name in _weights_of_products(model, set(initializers)):
            array = numpy_helper.to_array(initializers[name], base_dir=str(self._graph.parent))
            self._shapes[name] = own_shape(name, array.shape, self._layout)
            several_points = array[0, 0].size > 1  # a convolution's
            if not several_points and not self._packed:
                self._bound[name] = ort.OrtValue.ortvalue_from_numpy(np.array(array))

    def _with_weights(self) -> bytes:
        """The graph, with bound weights declared as inputs and replaced weights built in."""
        model = onnx.load(str(self._graph), load_external_data=False)
        for initializer in model.graph.initializer:
            name = initializer.name
            if name in self._bound:
                model.graph.input.append(
                    onnx.helper.make_tensor_value_info(
                        name, initializer.data_type, initializer.dims
                    )
                )
            if name in self._built_in:
                array = self._built_in[name].numpy()
                initializer.CopyFrom(numpy_helper.from_array(array, name))
        return bytes(model.SerializeToString())


def _weights_of_products(model: onnx.ModelProto, initializers: set[str]) -> list[str]:
    """Initializers that are weights of matrix products and convolutions, directly or reshaped."""
    shaped = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Reshape"}
    products = [n for n in model.graph.node if n.op_type in _PRODUCTS]
    used = {shaped.get(i, i): None for n in products for i in n.input}
    return [name for name in used if name in initializers and name.endswith(".weight")]


def _shape(dims: list[int | str]) -> tuple[int | None, ...]:
    return tuple(d if isinstance(d, int) else None for d in dims)

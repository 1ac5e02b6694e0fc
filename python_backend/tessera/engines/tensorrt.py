"""The `tensorrt` engine: a compiled engine on an NVIDIA GPU. The only runtime module that knows
TensorRT.

It is thin on purpose and refers to tensors by name only. It uses the part of the API that TensorRT
10.8 and 11.4 share.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import tensorrt as trt
import torch

from tessera.engines.base import EngineInfo, check_refit, failed
from tessera.engines.cuda_graphs import Call, CudaCapturer, Replayer
from tessera.errors import BundleError, InternalError
from tessera.networks.weights import Initializers, Layout, own_shape, to_layout

_TYPES = {
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.HALF: torch.float16,
    trt.DataType.BF16: torch.bfloat16,
    trt.DataType.INT64: torch.int64,
    trt.DataType.INT32: torch.int32,
}
_LOGGER = trt.Logger(trt.Logger.WARNING)


def version() -> str:
    """The installed TensorRT's version."""
    return str(trt.__version__)


class TensorRtEngine:
    """A compiled engine on a GPU.

    Args:
        engine_file: the file that `tessera-build compile` wrote.
        layout: how the graph's weights differ from the checkpoint's.
        base: the graph's weights by name, in its layout.
        stripped: whether the compiled engine has no weights, so that all are refitted when opened.
        graphs: how many sets of shapes CUDA graphs are kept for; 0 means none. It is undocumented
            whether graphs captured before a refit may run after it, so a refit drops them.
        device: `cuda:0` ...

    Raises:
        BundleError: TensorRT cannot load the file.
    """

    def __init__(
        self,
        engine_file: Path,
        *,
        layout: Layout,
        base: Initializers,
        stripped: bool = False,
        graphs: int = 0,
        device: str = "cuda:0",
    ) -> None:
        self._device = torch.device(device)
        with torch.cuda.device(self._device):
            self._load(engine_file, layout, base, graphs)
            if stripped:
                self._replace({name: self._base[name] for name in self._shapes})

    def _load(self, engine_file: Path, layout: Layout, base: Initializers, graphs: int) -> None:
        self._runtime = trt.Runtime(_LOGGER)
        self._engine = self._runtime.deserialize_cuda_engine(engine_file.read_bytes())
        if self._engine is None:
            raise BundleError(
                f"TensorRT {version()} cannot load {engine_file}; compile the bundle again"
            )
        self._layout = layout
        self._base = base
        self._replaced: dict[str, torch.Tensor] = {}
        self._stream = torch.cuda.Stream()
        self._lock = threading.Lock()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._inputs = [n for n in names if self._mode(n) == trt.TensorIOMode.INPUT]
        self._outputs = [n for n in names if self._mode(n) == trt.TensorIOMode.OUTPUT]
        # One execution context for each captured graph, since a graph keeps its context's shapes
        # and addresses. They never run at the same time, so they share memory for activations.
        size = self._engine.device_memory_size_v2
        self._scratch = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._refitter = trt.Refitter(self._engine, _LOGGER)
        self._shapes = {
            name: own_shape(name, base.shape(name), layout)
            for name in self._refitter.get_all_weights()
        }
        self._call: Call = (
            Replayer(self._new_call, capacity=graphs, capture=CudaCapturer(str(self._device)))
            if graphs
            else self._new_call()
        )

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`. Inputs are moved to the GPU and cast to the engine's types."""
        with self._lock, torch.cuda.stream(self._stream):  # its device becomes current, too
            self._stream.wait_stream(torch.cuda.default_stream(self._device))
            try:
                placed = [self._placed(name, inputs[name]) for name in self._inputs]
                outputs = self._call(placed)
                self._stream.synchronize()
            except RuntimeError as error:  # torch's, which has the tensors
                raise failed("TensorRT", error) from error
        return dict(zip(self._outputs, outputs, strict=True))

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        return EngineInfo(
            kind="tensorrt",
            device=str(self._device),
            inputs={name: self._shape(name) for name in self._inputs},
            outputs={name: self._shape(name) for name in self._outputs},
            refittable=frozenset(self._shapes),
        )

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Engine.refit`. Runs wait until it is done."""
        check_refit(weights, self._shapes)
        with self._lock, torch.cuda.device(self._device):
            placed = self._replace(
                {n: to_layout(n, w.detach(), self._layout) for n, w in weights.items()}
            )
            for name, tensor in placed.items():  # whoever passed it may overwrite it
                shared = _memory(tensor) == _memory(weights[name])
                self._replaced[name] = tensor.clone() if shared else tensor

    def _replace(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Set weights in the graph's layout, and the weights that TensorRT has fused with them;
        returns the former in the engine's types.

        The latter get the value that `refit` set last, or else the graph's.
        """
        refitter = self._refitter
        placed = {name: self._set(name, weight) for name, weight in weights.items()}
        kept_alive = []
        for name in refitter.get_missing_weights():
            value = self._replaced[name] if name in self._replaced else self._base[name]
            kept_alive.append(self._set(name, value))
        missing = refitter.get_missing_weights()
        if missing:
            raise InternalError(
                f"TensorRT still misses {len(missing)} weights, first {missing[0]!r}"
            )
        if not refitter.refit_cuda_engine_async(self._stream.cuda_stream):
            raise InternalError("TensorRT could not refit the engine")
        self._stream.synchronize()  # until then the weights have to stay in memory
        if isinstance(self._call, Replayer):
            self._call.forget()
        return placed

    def _set(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Pass one weight to TensorRT; returns the tensor that has to outlive the refit."""
        refitter = self._refitter
        prototype = refitter.get_weights_prototype(name)
        if prototype.size not in (-1, weight.numel()):
            raise BundleError(
                f"weight {name} has {weight.numel()} values; accepted: {prototype.size}"
            )
        tensor = weight.detach().to(_TYPES[prototype.dtype]).contiguous()
        place = trt.TensorLocation.DEVICE if tensor.is_cuda else trt.TensorLocation.HOST
        value = trt.Weights(prototype.dtype, tensor.data_ptr(), tensor.numel())
        if not refitter.set_named_weights(name, value, place):
            raise InternalError(f"TensorRT rejected weight {name}")
        return tensor

    def _new_call(self) -> Call:
        """A function that queues the compiled engine in a new execution context."""
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        return partial(self._queue, context)

    def _queue(
        self, context: trt.IExecutionContext, inputs: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Bind tensors to a context and queue the compiled engine on the current stream."""
        for name, tensor in zip(self._inputs, inputs, strict=True):
            self._bind(context, name, tensor)
        outputs = [self._new_output(context, name) for name in self._outputs]
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            shapes = [tuple(tensor.shape) for tensor in inputs]
            raise InternalError(f"TensorRT could not run with inputs of shapes {shapes}")
        return outputs

    def _placed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        dtype = _TYPES[self._engine.get_tensor_dtype(name)]
        return tensor.to(self._device, dtype, non_blocking=True).contiguous()

    def _bind(self, context: trt.IExecutionContext, name: str, tensor: torch.Tensor) -> None:
        if not context.set_input_shape(name, tuple(tensor.shape)):
            low, _, high = self._engine.get_tensor_profile_shape(name, 0)
            raise InternalError(
                f"{name} has shape {tuple(tensor.shape)}; the compiled engine accepts "
                f"{tuple(low)} to {tuple(high)}"
            )
        context.set_tensor_address(name, tensor.data_ptr())

    def _new_output(self, context: trt.IExecutionContext, name: str) -> torch.Tensor:
        shape = tuple(context.get_tensor_shape(name))
        dtype = _TYPES[self._engine.get_tensor_dtype(name)]
        output = torch.empty(shape, dtype=dtype, device=self._device)
        context.set_tensor_address(name, output.data_ptr())
        return output

    def _mode(self, name: str) -> trt.TensorIOMode:
        return self._engine.get_tensor_mode(name)

    def _shape(self, name: str) -> tuple[int | None, ...]:
        return tuple(None if d < 0 else d for d in self._engine.get_tensor_shape(name))


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

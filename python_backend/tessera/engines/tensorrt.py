"""The `tensorrt` engine: a compiled plan on an NVIDIA GPU. The only runtime module that knows
TensorRT.

Thin on purpose, and by tensor names only. It uses what TensorRT 10.8 and 11.4 have in common.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import tensorrt as trt
import torch

from tessera.engines.base import EngineInfo
from tessera.errors import BundleError, InternalError

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
    """A plan with one execution context on the current GPU.

    Args:
        plan: file that `tessera-build compile` wrote.

    Raises:
        BundleError: TensorRT cannot load it.
    """

    def __init__(self, plan: Path) -> None:
        self._runtime = trt.Runtime(_LOGGER)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise BundleError(f"TensorRT {version()} cannot load {plan}; compile the bundle again")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        self._lock = threading.Lock()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._inputs = [n for n in names if self._mode(n) == trt.TensorIOMode.INPUT]
        self._outputs = [n for n in names if self._mode(n) == trt.TensorIOMode.OUTPUT]
        self._refitter: trt.Refitter | None = None

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`; inputs are moved to the GPU and cast as the plan wants them."""
        with self._lock, torch.cuda.stream(self._stream):
            self._stream.wait_stream(torch.cuda.default_stream())
            held = {name: self._bind(name, inputs[name]) for name in self._inputs}
            outputs = {name: self._new_output(name) for name in self._outputs}
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
                raise InternalError(f"TensorRT could not run with inputs of shapes {shapes}")
            self._stream.synchronize()
        return outputs

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        return EngineInfo(
            kind="tensorrt",
            device=f"cuda:{torch.cuda.current_device()}",
            inputs={name: self._shape(name) for name in self._inputs},
            outputs={name: self._shape(name) for name in self._outputs},
        )

    def refit(
        self, weights: Mapping[str, torch.Tensor], base: Callable[[str], torch.Tensor]
    ) -> None:
        """Replace weights in place; nothing runs meanwhile.

        Args:
            weights: by name, in the graph's layout, on the CPU or the GPU.
            base: gives the value of a weight that TensorRT has fused with one of those and
                therefore wants too.

        Raises:
            BundleError: the plan has no such weight, or one of another size.
            InternalError: TensorRT failed; the plan has to be opened again.
        """
        with self._lock:
            refitter = self._refitter or trt.Refitter(self._engine, _LOGGER)
            self._refitter = refitter
            known = set(refitter.get_all_weights())
            unknown = sorted(set(weights) - known)
            if unknown:
                raise BundleError(f"the plan has no weight {unknown[0]!r} that can be replaced")
            held = [self._set(refitter, name, weight) for name, weight in weights.items()]
            held += [self._set(refitter, n, base(n)) for n in refitter.get_missing_weights()]
            missing = refitter.get_missing_weights()
            if missing:
                raise InternalError(f"TensorRT still misses weights, the first is {missing[0]!r}")
            if not refitter.refit_cuda_engine_async(self._stream.cuda_stream):
                raise InternalError("TensorRT could not refit the engine")
            self._stream.synchronize()  # until then the weights have to stay where they are

    def _set(self, refitter: trt.Refitter, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Hand over one weight; returns the tensor that has to outlive the refit."""
        wanted = refitter.get_weights_prototype(name)
        if wanted.size not in (-1, weight.numel()):
            raise BundleError(f"weight {name} has {weight.numel()} values, the plan {wanted.size}")
        tensor = weight.detach().to(_TYPES[wanted.dtype]).contiguous()
        place = trt.TensorLocation.DEVICE if tensor.is_cuda else trt.TensorLocation.HOST
        value = trt.Weights(wanted.dtype, tensor.data_ptr(), tensor.numel())
        if not refitter.set_named_weights(name, value, place):
            raise InternalError(f"TensorRT refused weight {name}")
        return tensor

    def _bind(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        dtype = _TYPES[self._engine.get_tensor_dtype(name)]
        placed = tensor.to("cuda", dtype, non_blocking=True).contiguous()
        if not self._context.set_input_shape(name, tuple(placed.shape)):
            low, _, high = self._engine.get_tensor_profile_shape(name, 0)
            raise InternalError(
                f"{name} has shape {tuple(placed.shape)}; the plan takes {tuple(low)} to "
                f"{tuple(high)}"
            )
        self._context.set_tensor_address(name, placed.data_ptr())
        return placed

    def _new_output(self, name: str) -> torch.Tensor:
        shape = tuple(self._context.get_tensor_shape(name))
        dtype = _TYPES[self._engine.get_tensor_dtype(name)]
        output = torch.empty(shape, dtype=dtype, device="cuda")
        self._context.set_tensor_address(name, output.data_ptr())
        return output

    def _mode(self, name: str) -> trt.TensorIOMode:
        return self._engine.get_tensor_mode(name)

    def _shape(self, name: str) -> tuple[int | None, ...]:
        return tuple(None if d < 0 else d for d in self._engine.get_tensor_shape(name))

"""The `torch` engine: runs the module that a graph was exported from.

It is the numeric reference on the CPU. On a GPU it serves if TensorRT does not: in half precision,
channels last, with a CUDA graph per set of shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from tessera.engines.base import EngineInfo, check_refit
from tessera.engines.cuda_graphs import Call, Capturer, CudaCapturer, Replayer
from tessera.errors import InternalError
from tessera.networks.modules import GraphModule, keeps_type

_PICTURES = ("sample", "latents", "image", "mid", "hint")


class TorchEngine:
    """A module on one device.

    Args:
        module: the module with its weights. It is moved and cast in place.
        device: `cpu`, `cuda:0` ...
        dtype: type of weights, activations and outputs.
        graphs: how many sets of shapes CUDA graphs are kept for; 0 means none. Captured graphs use
            refitted weights, since a refit overwrites weights in place.
        capturer: makes captures; CUDA by default.
        compiled: whether to use torch.compile. It compiles each set of shapes at first use, which
            takes minutes.
    """

    def __init__(
        self,
        module: GraphModule,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        graphs: int = 0,
        capturer: Callable[[], Capturer] = CudaCapturer,
        compiled: bool = False,
    ) -> None:
        self._device = torch.device(device)
        self._dtype = dtype
        self._module = module.to(self._device, dtype)
        self._channels_last = self._device.type == "cuda"
        if self._channels_last:
            self._module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._parameters = dict(self._module.named_parameters())  # collecting them is slow
        self._shapes = {name: p.shape for name, p in self._parameters.items()}
        self._forward = torch.compile(module, dynamic=False) if compiled else module
        self._call: Call = self._queue
        if graphs:
            self._call = Replayer(lambda: self._queue, capacity=graphs, capture=capturer())

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`. Inputs may be on any device and in any precision."""
        arguments = [self._placed(name, inputs[name]) for name in self._module.inputs]
        try:
            outputs = self._call(arguments)
        except RuntimeError as error:
            raise InternalError(f"torch failed: {error}") from error
        return dict(zip(self._module.outputs, outputs, strict=True))

    @torch.no_grad()
    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Engine.refit`. It is queued on the current stream, after earlier runs."""
        check_refit(weights, self._shapes)
        for name, weight in weights.items():
            self._parameters[name].copy_(weight)

    def describe(self) -> EngineInfo:
        """See `Engine.describe`. Shapes are unknown."""
        return EngineInfo(
            kind="torch",
            device=str(self._device),
            inputs=dict.fromkeys(self._module.inputs, ()),
            outputs=dict.fromkeys(self._module.outputs, ()),
            refittable=frozenset(self._shapes),
        )

    def _queue(self, arguments: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        outputs = self._forward(*arguments)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _placed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        picture = name in _PICTURES or name.startswith("skip_")
        layout = torch.preserve_format
        if self._channels_last and picture and tensor.ndim == 4:
            layout = torch.channels_last
        dtype = tensor.dtype if keeps_type(name, tensor) else self._dtype
        return tensor.to(self._device, dtype, memory_format=layout)

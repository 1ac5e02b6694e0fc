"""The `torch` engine: runs the module that a graph was exported from.

It is the numeric reference on the CPU. On a GPU it serves if TensorRT does not: in half precision,
channels last, with a CUDA graph per set of shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakValueDictionary

import torch

from tessera.engines.base import EngineInfo, check_refit, failed
from tessera.engines.cuda_graphs import Call, Capturer, CudaCapturer, Replayer
from tessera.networks.modules import GraphModule, keeps_type
from tessera.networks.weights import Place

Shared = tuple[Place, str, torch.dtype]
_pool: WeakValueDictionary[Shared, torch.Tensor] = WeakValueDictionary()
"""The weights of this process's engines that none has refitted."""
_PICTURES = ("sample", "latents", "image", "mid", "hint")


class TorchEngine:
    """A module on one device.

    Args:
        module: the module with its weights. It is moved and cast in place.
        device: `cpu`, `cuda:0` ...
        dtype: type of weights, activations and outputs.
        graphs: how many sets of shapes CUDA graphs are kept for; 0 means none. Captured graphs use
            refitted weights, since a refit overwrites weights in place.
        capturer: makes what captures on a device; CUDA by default.
        compiled: whether to use torch.compile. It compiles each set of shapes at first use, which
            takes minutes.
        places: where weights are stored, by name. Engines of one process, device and type share
            weights of one place until one of them is refitted.
    """

    def __init__(
        self,
        module: GraphModule,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        graphs: int = 0,
        capturer: Callable[[str], Capturer] = CudaCapturer,
        compiled: bool = False,
        places: Mapping[str, Place] | None = None,
    ) -> None:
        self._device = torch.device(device)
        self._dtype = dtype
        self._on_gpu = self._device.type == "cuda"
        self._parameters = dict(module.named_parameters())  # collecting them is slow
        self._shared: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            parameter.data = self._placed_weight(name, parameter.data, (places or {}).get(name))
        self._module = module.to(self._device, dtype)  # buffers
        self._shapes = {name: p.shape for name, p in self._parameters.items()}
        self._forward = torch.compile(module, dynamic=False) if compiled else module
        self._replayer: Replayer | None = None
        if graphs:
            self._replayer = Replayer(
                lambda: self._queue, capacity=graphs, capture=capturer(device)
            )
        self._call: Call = self._replayer or self._queue

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`. Inputs may be on any device and in any precision."""
        arguments = [self._placed(name, inputs[name]) for name in self._module.inputs]
        try:
            with self._current():
                outputs = self._call(arguments)
        except RuntimeError as error:
            raise failed("torch", error) from error
        return dict(zip(self._module.outputs, outputs, strict=True))

    @torch.no_grad()
    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Engine.refit`. It is queued on the current stream, after earlier runs.

        A weight that other engines have too is first copied for this one. CUDA graphs refer to the
        old place, so they are captured again.
        """
        check_refit(weights, self._shapes)
        parted = [name for name in weights if name in self._shared]
        with torch.inference_mode(False):
            for name in parted:
                self._parameters[name].data = self._shared.pop(name).clone()
        if parted and self._replayer:
            self._replayer.forget()
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

    def _current(self) -> AbstractContextManager[None]:
        """The device is current: kernels that torch compiles go to the current one."""
        return torch.cuda.device(self._device) if self._on_gpu else nullcontext()

    def _placed_weight(self, name: str, weight: torch.Tensor, place: Place | None) -> torch.Tensor:
        """A weight on the engine's device: that of another engine if it is stored in one place."""
        key = None if place is None else (place, str(self._device), self._dtype)
        placed = None if key is None else _pool.get(key)
        if placed is None:
            layout = torch.preserve_format
            if self._on_gpu and weight.ndim == 4:
                layout = torch.channels_last
            placed = weight.to(self._device, self._dtype, memory_format=layout)
        if key is not None:
            self._shared[name] = _pool[key] = placed
        return placed

    def _queue(self, arguments: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        outputs = self._forward(*arguments)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _placed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        picture = name in _PICTURES or name.startswith("skip_")
        layout = torch.preserve_format
        if self._on_gpu and picture and tensor.ndim == 4:
            layout = torch.channels_last
        dtype = tensor.dtype if keeps_type(name, tensor) else self._dtype
        return tensor.to(self._device, dtype, memory_format=layout)

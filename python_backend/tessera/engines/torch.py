"""The `torch` engine: the module that a graph was exported from.

The numeric reference on the CPU, and what runs on a GPU without TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tessera.engines.base import EngineInfo
from tessera.errors import InternalError
from tessera.modules import GraphModule

_EXACT = ("timestep", "time_ids", "norms")
"""Inputs that stay in their own precision, as integers and weights of means (`share_...`) do:
numbers that a half cannot hold."""


class TorchEngine:
    """A module on one device.

    Args:
        module: with its weights; it is moved and cast in place.
        device: `cpu`, `cuda:0` ...
        dtype: of weights, activations and outputs.
    """

    def __init__(
        self, module: GraphModule, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self._device, self._dtype = torch.device(device), dtype
        self._module = module.to(self._device, dtype)
        if self._device.type == "cuda":
            self._module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`; inputs may be on any device and in any precision."""
        arguments = [self._placed(name, inputs[name]) for name in self._module.inputs]
        try:
            outputs = self._module(*arguments)
        except RuntimeError as error:
            raise InternalError(f"torch failed: {error}") from error
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return dict(zip(self._module.outputs, outputs, strict=True))

    def describe(self) -> EngineInfo:
        """See `Engine.describe`; shapes are not known beforehand."""
        return EngineInfo(
            kind="torch",
            device=str(self._device),
            inputs=dict.fromkeys(self._module.inputs, ()),
            outputs=dict.fromkeys(self._module.outputs, ()),
        )

    def _placed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        exact = name in _EXACT or name.startswith("share_") or not tensor.is_floating_point()
        return tensor.to(self._device, tensor.dtype if exact else self._dtype)

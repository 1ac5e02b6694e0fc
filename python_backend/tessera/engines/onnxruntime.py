"""The `onnxruntime` engine: an ONNX graph on the CPU.

The default where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort
import torch

from tessera.engines.base import EngineInfo
from tessera.errors import InternalError

ort.set_default_logger_severity(3)


class OnnxRuntimeEngine:
    """One session on the CPU provider.

    Args:
        graph: the .onnx file (external data beside it).
        threads: threads of one call; 0 is one per core.
    """

    def __init__(self, graph: Path, *, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # After a run its threads must not go on spinning: the next run is another session's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = ort.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [o.name for o in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`; inputs are float32 or int64 as the graph declares."""
        feed = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        try:
            outputs = self._session.run(self._outputs, feed)
        except Exception as error:  # onnxruntime has no common base for its errors
            raise InternalError(f"ONNX Runtime failed: {error}") from error
        return {
            name: torch.from_numpy(array)
            for name, array in zip(self._outputs, outputs, strict=True)
        }

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        return EngineInfo(
            kind="onnxruntime",
            device="cpu",
            inputs={i.name: _shape(i.shape) for i in self._session.get_inputs()},
            outputs={o.name: _shape(o.shape) for o in self._session.get_outputs()},
        )


def _shape(dims: list[int | str]) -> tuple[int | None, ...]:
    return tuple(d if isinstance(d, int) else None for d in dims)

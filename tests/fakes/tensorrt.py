"""TensorRT as far as `TensorRtEngine` opens an engine and replaces its weights, without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]


@dataclass
class Weights:
    """Values in memory that belongs to the caller."""

    dtype: str
    address: int = 0
    size: int = -1


@dataclass
class FakeRefitter:
    """Copies weights when the refit is started, all of them of type float32.

    Attributes:
        groups: names of weights that are fused with each other: all of them are set, or none.
        held: values of the weights that have been set, by name.
    """

    groups: Sequence[frozenset[str]]
    held: dict[str, Values] = field(default_factory=dict)
    _set: dict[str, Weights] = field(default_factory=dict)

    def get_all_weights(self) -> list[str]:
        return sorted(name for group in self.groups for name in group)

    def get_weights_prototype(self, name: str) -> Weights:
        return Weights("FLOAT")

    def set_named_weights(self, name: str, weights: Weights, location: str) -> bool:
        self._set[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        touched = [group for group in self.groups if group & self._set.keys()]
        return sorted(name for group in touched for name in group - self._set.keys())

    def refit_cuda_engine_async(self, stream: int) -> bool:
        for name, weights in self._set.items():
            numbers = (ctypes.c_float * weights.size).from_address(weights.address)
            self.held[name] = np.array(numbers)
        self._set.clear()
        return True


def fake_tensorrt(refitter: FakeRefitter) -> ModuleType:
    """A module in the place of `tensorrt` whose engines have this refitter."""

    def opened(content: bytes) -> Any:
        return SimpleNamespace(
            num_io_tensors=0,
            device_memory_size_v2=1,
            create_execution_context=lambda strategy: SimpleNamespace(
                set_device_memory=lambda address, size: None
            ),
        )

    made = ModuleType("tensorrt")
    for name in ("DataType", "TensorLocation", "ExecutionContextAllocationStrategy"):
        names = ("FLOAT", "HALF", "BF16", "INT64", "INT32", "HOST", "USER_MANAGED")
        setattr(made, name, SimpleNamespace(**{each: each for each in names}))
    made.Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})  # type: ignore[attr-defined]
    made.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=opened)  # type: ignore[attr-defined]
    made.Refitter = lambda engine, logger: refitter  # type: ignore[attr-defined]
    made.Weights = Weights  # type: ignore[attr-defined]
    return made

"""The engine protocol.

Inputs and outputs are tensors by name. Outputs are on the engine's device and in its precision, so
that engines can be chained. The caller converts the last outputs. Knows no runtime library.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tessera.errors import BundleError, InternalError, TesseraError, Unavailable

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_NO_MEMORY = ("out of memory", "failed to allocate memory", "can't allocate memory", "bad_alloc")
"""In what torch and ONNX Runtime say when memory is missing; neither has one type of error for it
on every device."""


class OutOfMemory(Unavailable):
    """A network could not run, because memory was missing where it is."""

    def __init__(self) -> None:
        super().__init__(
            "there is not enough memory for this picture at the moment; "
            "try again later, or ask for a smaller one"
        )


@dataclass(frozen=True)
class EngineInfo:
    """Description of an engine.

    Attributes:
        kind: see `registry.KINDS`.
        device: `cpu`, `cuda:0` ...
        inputs, outputs: shapes by name; `None` is any length.
        refittable: names of the weights that `refit` can replace.
    """

    kind: str
    device: str
    inputs: dict[str, tuple[int | None, ...]]
    outputs: dict[str, tuple[int | None, ...]]
    refittable: frozenset[str] = frozenset()


class Refittable(Protocol):
    """What has weights that can be replaced."""

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace weights in place. Other weights do not change.

        Args:
            weights: weights by name, with names and shapes of the checkpoint, on any device and in
                any precision.

        Raises:
            BundleError: a weight cannot be replaced or has another shape. Nothing changed.
            InternalError: the runtime failed. The engine has to be opened again.
        """
        ...

    def describe(self) -> EngineInfo:
        """Kind, device, inputs, outputs and refittable weights."""
        ...


class Engine(Refittable, Protocol):
    """One graph, ready to run. Not safe to use from two threads at once."""

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the graph once. Inputs may be on any device.

        Raises:
            OutOfMemory: there is no memory for a call of this size at the moment.
            InternalError: the runtime rejected the inputs or failed.
        """
        ...


def failed(runtime: str, error: Exception) -> TesseraError:
    """What to raise for an error of a runtime."""
    said = str(error)
    if isinstance(error, MemoryError) or any(words in said.lower() for words in _NO_MEMORY):
        _log.warning("%s has no memory for a call: %s", runtime, said)
        return OutOfMemory()
    return InternalError(f"{runtime} failed: {said}")


def check_refit(
    weights: Mapping[str, torch.Tensor], shapes: Mapping[str, Collection[int] | None]
) -> None:
    """Check the weights of a refit.

    Args:
        weights: the new weights.
        shapes: shapes of the refittable weights; `None` if a shape is unknown.

    Raises:
        BundleError: a name is unknown, or a shape differs.
    """
    for name, weight in weights.items():
        if name not in shapes:
            raise BundleError(f"the network has no weight {name!r} that can be replaced")
        shape = shapes[name]
        if shape is not None and tuple(weight.shape) != tuple(shape):
            raise BundleError(
                f"weight {name} has shape {tuple(weight.shape)}; accepted: {tuple(shape)}"
            )

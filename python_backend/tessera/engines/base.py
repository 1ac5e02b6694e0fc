"""The engine protocol.

Inputs and outputs are tensors by name. Outputs are on the engine's device and in its precision, so
that engines can be chained. The caller converts the last outputs. Knows no runtime library.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tessera.errors import BundleError

if TYPE_CHECKING:
    import torch


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


class Engine(Protocol):
    """One graph, ready to run. Not safe to use from two threads at once."""

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the graph once. Inputs may be on any device.

        Raises:
            InternalError: the runtime rejected the inputs or failed.
        """
        ...

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

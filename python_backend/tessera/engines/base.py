"""What an engine is.

Tensors go in and come out by name. What comes out is on the engine's device and in its own
precision, so that engines can be chained; whoever takes it out of the chain converts it.
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
    """Kind, device, and the names and shapes (None = any) of what goes in and out.

    `refittable` are the names of the weights that `refit` replaces.
    """

    kind: str
    device: str
    inputs: dict[str, tuple[int | None, ...]]
    outputs: dict[str, tuple[int | None, ...]]
    refittable: frozenset[str] = frozenset()


class Engine(Protocol):
    """One network, ready to run. Not for two threads at once."""

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the network once; inputs may be on any device.

        Raises:
            InternalError: the runtime refused the inputs or failed.
        """
        ...

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace weights in place, by their names and in their shapes in the checkpoint, on any
        device and in any precision. Weights that are not named stay as they are.

        Raises:
            BundleError: the network has no such weight to replace, or one of another shape; then
                nothing has been replaced.
            InternalError: the runtime failed; the engine has to be opened again.
        """
        ...

    def describe(self) -> EngineInfo:
        """What this engine runs and takes."""
        ...


def check_refit(
    weights: Mapping[str, torch.Tensor], shapes: Mapping[str, Collection[int] | None]
) -> None:
    """Compare the weights of a refit with what can be replaced; a shape of `None` is not known.

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

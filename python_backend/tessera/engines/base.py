"""What an engine is.

Tensors go in and come out by name. What comes out is on the engine's device and in its own
precision, so that engines can be chained; whoever takes it out of the chain converts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class EngineInfo:
    """Kind, device, and the names and shapes (None = any) of what goes in and out."""

    kind: str
    device: str
    inputs: dict[str, tuple[int | None, ...]]
    outputs: dict[str, tuple[int | None, ...]]


class Engine(Protocol):
    """One network, ready to run."""

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the network once; inputs may be on any device.

        Raises:
            InternalError: the runtime refused the inputs or failed.
        """
        ...

    def describe(self) -> EngineInfo:
        """What this engine runs and takes."""
        ...

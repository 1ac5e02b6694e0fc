"""What recordings are made with beside the bundle's networks: LoRAs and ControlNets.

`tessera.adapters.recorded` and `tessera.controls.recorded` have both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tessera.engines.base import Engine
from tessera.networks.modules import GraphModule
from tessera.plan import AdapterUse
from tessera.requests.request import Lora
from tessera.sparse.record import Join
from tessera.templates.keys import RecordedControl
from tessera.types import Conditions


class Adapters(Protocol):
    """LoRAs in the networks that make recordings."""

    def apply(self, adapter_set: tuple[AdapterUse, ...]) -> None:
        """Put an adapter set into the UNet.

        Raises:
            Unavailable: a LoRA's file has changed or was removed.
        """
        ...

    def read(self, loras: Sequence[Lora]) -> Read:
        """Put LoRAs into the text encoders.

        Raises:
            InvalidInput: a LoRA is unknown, named twice, or cannot be used.
        """
        ...


@dataclass(frozen=True)
class Read:
    """LoRAs as recordings know them: the UNet's set; digest and weight of each in the text
    encoders.
    """

    unet: tuple[AdapterUse, ...] = ()
    text: tuple[tuple[str, float], ...] = ()


OpenAdapters = Callable[[Mapping[str, GraphModule], Mapping[str, Engine]], Adapters]
"""Makes `Adapters` for the halves of the UNet and the text encoders, each by graph."""


class Controls(Protocol):
    """ControlNets of one registration, with their images."""

    def begin(self, controls: Sequence[RecordedControl], conditions: Conditions) -> Controlled:
        """ControlNets of one recording.

        Args:
            controls: of its key.
            conditions: the network's, one row.
        """
        ...


class Controlled(Protocol):
    """ControlNets of one recording."""

    def start(
        self, evaluations: Sequence[int], sample: torch.Tensor, timestep: torch.Tensor
    ) -> Join:
        """Ask those that apply, for a batch.

        Args:
            evaluations: of the schedule, one for each row of the batch.
            sample: scaled latents (rows, c, h, w).
            timestep: (rows,).

        Raises:
            Unavailable: a ControlNet's process has ended.
        """
        ...


class NoControls:
    """Of recordings that nobody gave control images for."""

    def begin(self, controls: Sequence[RecordedControl], conditions: Conditions) -> NoControls:
        """See `Controls`."""
        assert not controls, "only registrations record with ControlNets, and have their images"
        return self

    def start(
        self, evaluations: Sequence[int], sample: torch.Tensor, timestep: torch.Tensor
    ) -> Join:
        """See `Controlled`."""
        return lambda encoded: encoded

"""One graph's engines on several devices, refitted together.

A host keeps base and merged weights once, however many devices there are. Knows engines and
devices, nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tessera.engines.base import Engine, EngineInfo, Refittable
from tessera.engines.devices import Devices


class Replicas:
    """The engines of one graph.

    Args:
        engines: one for each device.
        devices: the devices.
    """

    def __init__(self, engines: Sequence[Engine], devices: Devices) -> None:
        self._engines = tuple(engines)
        self._devices = devices

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace weights on all devices at once (see `Engine.refit`). A device that fails and does
        not work any more is left out.
        """
        self._devices.each(lambda device: self._engines[device].refit(weights))

    def describe(self) -> EngineInfo:
        """Description of the first device's engine."""
        return self._engines[0].describe()


def refitted_together(engines: Sequence[Engine], devices: Devices) -> Refittable:
    """What refits a graph's engines on all devices."""
    return engines[0] if len(devices) == 1 else Replicas(engines, devices)

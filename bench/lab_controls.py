"""ControlNets of `bench/edit_lab.py`, without their models."""

from __future__ import annotations

from functools import cached_property

import torch

from tessera.controls.fanout import FanOut
from tessera.controls.network import CONDITIONS, ControlNetwork
from tessera.engines.bundle import Bundle
from tessera.manifest import CONTROLNET, HINT
from tessera.types import Tensors


class LabControls:
    """A bundle's ControlNets, opened at first use.

    Args:
        bundle: the bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._networks: dict[str, ControlNetwork] = {}

    @cached_property
    def fanout(self) -> FanOut:
        """Calls them."""
        return FanOut(self.ask)

    def ask(self, name: str, inputs: Tensors) -> torch.Tensor:
        """What their models answer."""
        network = self._networks.get(name) or self._open(name)
        keys = [int(key) for key in inputs["KEYS"]]
        with torch.inference_mode():
            if "SAMPLE" in inputs:
                return network.residuals(keys, inputs["SAMPLE"], inputs["TIMESTEP"])
            given = {theirs: inputs[ours] for ours, theirs in CONDITIONS.items() if ours in inputs}
            network.tell(keys[0], inputs["IMAGE"], given)
        return torch.zeros(1)

    def _open(self, name: str) -> ControlNetwork:
        graph, rows = f"{CONTROLNET}{name}", self._bundle.manifest.limits.max_rows
        engines = (self._bundle.engine(each) for each in (graph, f"{graph}{HINT}"))
        self._networks[name] = ControlNetwork(*engines, max_rows=rows)
        return self._networks[name]

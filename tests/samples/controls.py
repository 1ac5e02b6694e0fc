"""ControlNets in this process, in place of their Triton models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tessera.controls.fanout import Ask
from tessera.controls.network import CONDITIONS, ControlNetwork
from tessera.engines.torch import TorchEngine
from tessera.manifest import CONTROLNET, HINT
from tessera.networks.graphs import wrap
from tessera.types import Tensors
from tessera.variants import Variant


def ask_of(networks: Mapping[str, nn.Module], variant: Variant) -> Ask:
    """Answers the calls of a `FanOut` by ControlNets of diffusers, by name."""
    held = {name: _network(name, network, variant) for name, network in networks.items()}

    @torch.inference_mode()
    def ask(name: str, inputs: Tensors) -> torch.Tensor:
        keys = [int(key) for key in inputs["KEYS"]]
        if "SAMPLE" in inputs:
            return held[name].residuals(keys, inputs["SAMPLE"], inputs["TIMESTEP"])
        told = {theirs: inputs[ours] for ours, theirs in CONDITIONS.items() if ours in inputs}
        mode = int(inputs["MODE"]) if "MODE" in inputs else None
        held[name].tell(keys[0], inputs["IMAGE"], told, mode)
        return torch.zeros(1)

    return ask


def _network(name: str, network: nn.Module, variant: Variant) -> ControlNetwork:
    graph = f"{CONTROLNET}{name}"
    step, hint = (TorchEngine(wrap(g, network, variant)) for g in (graph, f"{graph}{HINT}"))
    config = dict(network.config)  # type: ignore[arg-type]
    return ControlNetwork(step, hint, max_rows=16, modes=config.get("num_control_type", 0))

"""Calls of ControlNets' models."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tessera.manifest import CONTROLNET
from tessera.triton import pb


def ask(name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Call a ControlNet's model. See `tessera.controls.fanout.Ask`."""
    tensors = [pb.tensor_of(key, tensor) for key, tensor in inputs.items()]
    return pb.to_torch(pb.call(f"{CONTROLNET}{name}", tensors, ["RESIDUALS"])["RESIDUALS"])

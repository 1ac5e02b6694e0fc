"""The weights that adapters may change, of pipelines in memory."""

from __future__ import annotations

from diffusers import DiffusionPipeline

from tessera.adapters.targets import Targets
from tessera.adapters.updates import PARTS
from tessera.networks.walk import outline_of


def targets(pipe: DiffusionPipeline) -> Targets:
    parts = {part: getattr(pipe, part) for part in PARTS if hasattr(pipe, part)}
    shapes = {part: outline_of(network).all_weights for part, network in parts.items()}
    return Targets(shapes, "these networks")

"""Checkpoints in folders, without the bundles that `bundles` makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Saved:
    """A checkpoint with random weights in a true topology, and its folder."""

    pipe: DiffusionPipeline
    folder: Path

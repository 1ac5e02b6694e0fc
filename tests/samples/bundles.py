"""Small checkpoints, and the bundles that are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusers import ControlNetModel, DiffusionPipeline

from tessera_build.addons import AddOns
from tessera_build.bundle import Choices

KEPT = Path(__file__).resolve().parents[1] / "out" / "test-bundles"
CHOICES = Choices(steps=4, lora_bound=0.3)
OPTIONS = ("--steps", "4", "--lora-bound", "0.3")
"""The same on the command line."""


CONTROL_WIDTHS = (8, 8, 16, 16)


@dataclass(frozen=True)
class Small:
    """A checkpoint with random weights in a true topology, a ControlNet called `edges` for it, and
    the bundle made of both.
    """

    variant: str
    pipe: DiffusionPipeline
    control: ControlNetModel
    checkpoint: Path
    bundle: Path

    @property
    def addons(self) -> AddOns:
        """What the bundle was made with beside the checkpoint."""
        return AddOns({"edges": self.checkpoint.parent / "edges"})

"""Small checkpoints, and the bundles that are made of them."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path

from diffusers import ControlNetModel, DiffusionPipeline

from tessera_build.addons import AddOns
from tessera_build.bundle import Choices, build_bundle, is_current

KEPT = Path(__file__).resolve().parents[2] / "out" / "test-bundles"
"""Bundles of small checkpoints are kept here from run to run, as long as they are current."""

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


def kept_bundle(small: Small) -> None:
    """Build the bundle if it is missing or stale; of several processes that want it, one does."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f".{small.variant}.wanted").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_current(small.bundle, small.checkpoint, CHOICES, small.addons):
            build_bundle(
                small.checkpoint,
                small.bundle,
                choices=CHOICES,
                progress=lambda what, done, total: None,
                addons=small.addons,
            )

"""Small checkpoints, and the bundles that are made of them."""

from __future__ import annotations

import fcntl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from diffusers import ControlNetModel, DiffusionPipeline

from tessera.variants import VARIANTS
from tessera_build.addons import AddOns
from tessera_build.bundle import Choices, build_bundle, is_current
from tessera_build.cli import _quiet
from tests.fakes.checkpoint import controlnet, topology

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


def make_small(variant: str, folder: Path) -> Small:
    """Write checkpoint and ControlNet into a folder; the bundle is the kept one, built if it is
    missing or stale. Of several processes that want it, one builds it.
    """
    pipe = topology(variant)
    pipe.save_pretrained(folder / "checkpoint")
    control = controlnet(
        pipe.unet,
        conditioning_embedding_out_channels=CONTROL_WIDTHS,
        controlnet_conditioning_channel_order="bgr" if variant == "sd21" else "rgb",
    )
    control.save_pretrained(folder / "edges")
    small = Small(variant, pipe, control, folder / "checkpoint", KEPT / variant)
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f".{variant}.wanted").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_current(small.bundle, small.checkpoint, CHOICES, small.addons):
            build_bundle(
                small.checkpoint,
                small.bundle,
                choices=CHOICES,
                progress=lambda what, done, total: None,
                addons=small.addons,
            )
    return small


def main() -> None:
    """Have every variant's bundle ready, on all cores, before tests on one core each want them."""
    _quiet()
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            make_small(variant, Path(folder))


if __name__ == "__main__":
    main()

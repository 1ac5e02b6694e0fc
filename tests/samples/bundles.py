"""Small checkpoints, and the bundles that are made of them."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, DiffusionPipeline

from tessera_build.addons import AddOns
from tessera_build.bundle import Choices, build_bundle, is_current
from tests.fakes.checkpoint import HALVES, controlnet, topology
from tests.fakes.controlnets import union as controlnet_union

KEPT = Path(__file__).resolve().parents[2] / "out" / "test-bundles"
"""Bundles of small checkpoints are kept here from run to run, as long as they are current."""

CHOICES = Choices(steps=4, lora_bound=0.3)
OPTIONS = ("--steps", "4", "--lora-bound", "0.3")
"""The same on the command line."""

IN_HALF = ("sd15-fp16", "sd15-bf16")
"""Small checkpoints whose bundles are in half precision."""

INPAINTING = "sd15-inpainting"
"""The small checkpoint with an inpainting UNet that a bundle is made of."""

CONTROL_WIDTHS = (8, 8, 16, 16)


@dataclass(frozen=True)
class Small:
    """A checkpoint with random weights in a true topology, a ControlNet called `edges` for it, for
    SDXL also a ControlNet-Union called `all`, and the bundle made of them.
    """

    variant: str
    pipe: DiffusionPipeline
    control: ControlNetModel
    checkpoint: Path
    bundle: Path
    union: ControlNetUnionModel | None = None

    @property
    def addons(self) -> AddOns:
        """What the bundle was made with beside the checkpoint."""
        names = ("edges", "all") if self.union else ("edges",)
        return AddOns({name: self.checkpoint.parent / name for name in names})


@torch.inference_mode(False)  # a test may ask for it within
def make_small(name: str, folder: Path) -> Small:
    """Write checkpoint and ControlNet into a folder; the bundle is the kept one, built if it is
    missing or stale. Of several processes that want it, one builds it.

    Args:
        name: of a variant; `sd15-fp16` is one in half precision, `sd15-inpainting` one with an
            inpainting UNet (without the side path, to build it sooner).
        folder: for the checkpoint and the ControlNet, in float32.
    """
    variant, _, kind = name.partition("-")
    precision = kind if kind in HALVES else ""
    choices = replace(CHOICES, precision=precision) if precision else CHOICES
    if name == INPAINTING:
        choices = replace(choices, lora_rank=0)
    pipe = topology(name)
    pipe.save_pretrained(folder / "checkpoint")
    control = controlnet(
        topology(variant).unet,  # of four channels, also for an inpainting UNet
        conditioning_embedding_out_channels=CONTROL_WIDTHS,
        controlnet_conditioning_channel_order="bgr" if variant == "sd21" else "rgb",
    )
    if precision:
        control.to(HALVES[precision]).float()
    control.save_pretrained(folder / "edges")
    union = controlnet_union(pipe.unet) if variant == "sdxl" else None
    if union is not None:
        union.save_pretrained(folder / "all")
    small = Small(variant, pipe, control, folder / "checkpoint", KEPT / name, union)
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f".{name}.wanted").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_current(small.bundle, small.checkpoint, choices, small.addons):
            build_bundle(
                small.checkpoint,
                small.bundle,
                choices=choices,
                progress=lambda what, done, total: None,
                addons=small.addons,
            )
    return small

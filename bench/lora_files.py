"""Writes LoRA files with random weights for the demo model's UNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from diffusers import UNet2DConditionModel

from bench.server import DEMO_CHECKPOINT
from tests.fakes import lora

LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "net.0.proj", "net.2")
"""Suffixes of the layers that most files change: attention and feed-forward."""
CONVOLUTIONS = ("conv1", "conv2")


def write_loras(
    folder: Path, names: Sequence[str], *, rank: int, modules: Sequence[str] = LINEAR
) -> None:
    """Write a file for each name, with updates of this rank for layers with these suffixes."""
    unet = UNet2DConditionModel.from_pretrained(str(DEMO_CHECKPOINT), subfolder="unet")
    pipe = SimpleNamespace(unet=unet)
    for seed, name in enumerate(names):
        pairs = lora.random_pairs(
            pipe, rank=rank, seed=seed, size=0.3, modules=tuple(modules), parts=("unet",)
        )
        lora.save(folder / f"{name}.safetensors", lora.peft(pairs))

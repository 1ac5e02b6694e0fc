"""Bytes of a template's recording for the published networks, by storage form.

    python -m bench.cache_bytes [--steps 30]

Computes sizes without running a network. `bench/edit_quality.py` measures the effect on images.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table

from tessera.networks.walk import program_of
from tessera.templates.fitting import numbers_per_step
from tessera.templates.storage import CHOICES, Storage
from tests.fakes.true_configs import CONFIGS

SIZES = {"sd15": 512, "sd21": 768, "sdxl": 1024}
PIXELS = 8
console = Console(highlight=False)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="bytes of a template's recording")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps")
    options = parser.parse_args()
    table = Table(title=f"Recording of {options.steps} steps: GB (MB per kept step)")
    table.add_column("form")
    for name, pixels in SIZES.items():
        table.add_column(f"{name}, {pixels}", justify="right")
    numbers = {name: numbers_of(name, pixels) for name, pixels in SIZES.items()}
    for storage in (Storage("float32"), *CHOICES):
        cells = [_cell(storage, n, options.steps) for n in numbers.values()]
        table.add_row(storage.name, *cells)
    console.print(table)


def numbers_of(config: str, pixels: int) -> int:
    """How many numbers one step of a recording has."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**CONFIGS[config]["unet"])
    program = program_of(unet)
    sites = tuple(s for s in program.sites if s.name != "halo.conv_in")
    return numbers_per_step(program, sites, (pixels // PIXELS, pixels // PIXELS))


def _cell(storage: Storage, numbers: int, steps: int) -> str:
    whole = storage.bytes(numbers, steps) / 1e9
    return f"{whole:.1f} ({storage.bytes(numbers, 1) / 1e6:.0f})"


if __name__ == "__main__":
    main()

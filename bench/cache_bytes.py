"""Bytes of a template's recording for the published networks, by storage form.

    python -m bench cache-bytes [--steps 30]

Computes sizes without running a network. `bench/edit_quality.py` measures the effect on images.
Writes `bench/results/cache_bytes.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table

from bench import report
from tessera.networks.walk import program_of
from tessera.templates.fitting import numbers_per_step
from tessera.templates.storage import CHOICES, Storage
from tests.fakes.true_configs import CONFIGS

SIZES = {"sd15": 512, "sd21": 768, "sdxl": 1024}
PIXELS = 8
console = Console(highlight=False)


def main() -> None:
    """Compute, print, write the report."""
    parser = argparse.ArgumentParser(description="bytes of a template's recording")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps")
    parser.add_argument("--out", type=Path, help="another file for the report")
    options = parser.parse_args()
    machine = report.describe_machine(1)
    numbers = {f"{name}, {pixels}": numbers_of(name, pixels) for name, pixels in SIZES.items()}
    rows: list[dict[str, Any]] = [
        {
            "form": storage.name,
            "bytes": {name: storage.bytes(n, options.steps) for name, n in numbers.items()},
            "of_a_step": {name: storage.bytes(n, 1) for name, n in numbers.items()},
        }
        for storage in (Storage("float32"), *CHOICES)
    ]
    table = Table("form", *numbers, title=f"Recording of {options.steps} steps: GB (MB of a step)")
    for row in rows:
        table.add_row(row["form"], *cells(row))
    console.print(table)
    settings = report.settings_of(options)
    file = report.write("cache_bytes", settings, rows, machine=machine, out=options.out)
    console.print(f"written: {file}")


def cells(row: dict[str, Any]) -> list[str]:
    """GB of a recording by the network, and MB of a kept step in brackets."""
    both = zip(row["bytes"].values(), row["of_a_step"].values(), strict=True)
    return [f"{whole / 1e9:.1f} ({step / 1e6:.0f})" for whole, step in both]


def numbers_of(config: str, pixels: int) -> int:
    """How many numbers one step of a recording has."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**CONFIGS[config]["unet"])
    program = program_of(unet)
    sites = tuple(s for s in program.sites if s.name != "halo.conv_in")
    return numbers_per_step(program, sites, (pixels // PIXELS, pixels // PIXELS))


if __name__ == "__main__":
    main()

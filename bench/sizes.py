"""How large bundles in each precision are: computed, and measured with random weights.

    python -m bench sizes                                # parameters and bytes, computed
    python -m bench sizes --build sd15 --precision fp16 --keep out/sizes

`--build` writes a checkpoint in that precision, builds a bundle of it as `tessera-build` does, and
gives bytes by file, seconds, and the largest memory of all processes together (proportional set
size, every half second). What is computed is written to `bench/results/sizes.json`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
from diffusers import EulerDiscreteScheduler
from rich.console import Console
from rich.table import Table
from torch import nn

from bench import report
from bench.gpu.networks import configs, control_config, random_network
from bench.gpu.timing import Place
from tessera.manifest import read_manifest
from tessera.networks.graphs import new_network
from tessera.variants import VARIANTS
from tessera_build.demo.scenes import vocabulary
from tessera_build.demo.tokenizer import build_tokenizer
from tessera_build.precision import PRECISIONS, stored_type

BINARY = Path(sys.executable).with_name("tessera-build")
LINEAR = (nn.Linear,)
BUNDLE = "all but the ControlNet"
console = Console(highlight=False)


def main() -> None:
    """Compute, print, write the report; or measure a build."""
    parser = argparse.ArgumentParser(description="sizes of bundles")
    parser.add_argument("--build", choices=("sd15", "sdxl"), help="measure a build")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp16")
    parser.add_argument("--keep", type=Path, default=Path("out/sizes"), help="folder to write to")
    parser.add_argument("--out", type=Path, help="another file for the report of what is computed")
    options = parser.parse_args()
    if options.build:
        _measure(options.build, options.precision, options.keep)
        return
    machine = report.describe_machine(1)
    rows = [row for variant in ("sd15", "sdxl") for row in computed(variant)]
    table = Table("variant", "network", "parameters", *(f"{p}, GB" for p in PRECISIONS))
    for row in rows:
        sizes = (f"{size / 1e9:.2f}" for size in row["bytes"].values())
        table.add_row(row["variant"], row["network"], f"{row['parameters']:,}", *sizes)
    console.print(table)
    console.print(f"written: {report.write('sizes', {}, rows, machine=machine, out=options.out)}")


def computed(variant: str) -> list[dict[str, Any]]:
    """Parameters, and bytes by precision, of each network, of the UNet's linear layers, of all but
    the ControlNet (`BUNDLE`), and of the ControlNet.
    """
    parts = configs(variant, tiny=False)
    rows = []
    for part, config in parts.items():
        network: Any = new_network(part, config)
        rows.append(_row(variant, part, config, sum(p.numel() for p in network.parameters())))
        if part == "unet":
            linear = sum(m.weight.numel() for m in network.modules() if isinstance(m, LINEAR))
            unet = _row(variant, part, config, linear)
    total = {p: sum(row["bytes"][p] for row in rows) for p in PRECISIONS}
    count = sum(row["parameters"] for row in rows)
    whole = {"variant": variant, "network": BUNDLE, "parameters": count, "bytes": total}
    control = control_config(parts["unet"])
    network = new_network("controlnet_any", control)
    own = _row(variant, "controlnet_any", control, sum(p.numel() for p in network.parameters()))
    return [*rows, {**unet, "network": "linear layers of the UNet"}, whole, own]


def _row(variant: str, part: str, config: dict[str, Any], count: int) -> dict[str, Any]:
    sizes = {p: count * _bytes(variant, part, p, config) for p in PRECISIONS}
    return {"variant": variant, "network": part, "parameters": count, "bytes": sizes}


def _bytes(variant: str, part: str, precision: str, config: dict[str, Any]) -> int:
    return stored_type(part, precision, VARIANTS[variant], config).itemsize


def _measure(variant: str, precision: str, folder: Path) -> None:
    checkpoint, bundle = folder / f"{variant}-checkpoint", folder / f"{variant}-{precision}"
    if not checkpoint.exists():
        _write_checkpoint(variant, PRECISIONS[precision], checkpoint)
    command = [str(BINARY), "bundle", str(checkpoint), "-o", str(bundle), "--force"]
    began = time.monotonic()
    building = psutil.Popen([*command, "--precision", precision])
    most = 0
    while building.poll() is None:
        most = max(most, _memory(building))
        time.sleep(0.5)
    if building.returncode:
        raise subprocess.CalledProcessError(building.returncode, command)
    seconds = time.monotonic() - began
    files = read_manifest(bundle).files
    table = Table("file", "bytes", title=f"{variant}, {precision}")
    for name, entry in sorted(files.items(), key=lambda item: -item[1].bytes):
        if entry.bytes > 10**6:
            table.add_row(name, f"{entry.bytes:,}")
    table.add_row("all", f"{sum(e.bytes for e in files.values()):,}", style="bold")
    console.print(table)
    console.print(f"built in {seconds:.0f} s, largest memory {most / 1e9:.2f} GB")


def _memory(process: psutil.Process) -> int:
    """Proportional set size of a process and those that it has started."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def _write_checkpoint(variant: str, dtype: torch.dtype, folder: Path) -> None:
    """A diffusers folder with random weights in the published configurations."""
    row = VARIANTS[variant]
    tokenizers = {name: build_tokenizer(vocabulary()) for name in row.tokenizers}
    ends = {"eos_token_id": tokenizers["tokenizer"].eos_token_id}
    networks = {
        part: random_network(
            part,
            config | (ends if part.startswith("text") else {}),
            Place("cpu", torch.float32),
            dtype=dtype,
        )
        for part, config in configs(variant, tiny=False).items()
    }
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
    )
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline: Any = getattr(diffusers, row.pipeline)
    more = {"add_watermarker": False} if row.pooled else none
    made = pipeline(**networks, **tokenizers, scheduler=scheduler, **more)
    made.save_pretrained(folder)


if __name__ == "__main__":
    main()

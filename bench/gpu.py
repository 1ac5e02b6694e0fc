"""The server with torch engines against diffusers, eager and compiled, on one NVIDIA GPU.

Uses random weights in the published configurations. Started by `bench/gpu.sh`. The sides alternate.
Measurements for which the time is too short are left out and marked in the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from rich.console import Console
from rich.table import Table

from bench.random_bundle import pipeline_of, write_random_bundle
from bench.server import Server, serving
from tessera_client import Client
from tests.fakes.true_configs import CONFIGS

PROMPT = "a large red circle at the left on a blue background"
SIDES = ("tessera", "eager", "compiled")
COMPILE_S = {"sd15": 70.0, "sdxl": 130.0}
"""Seconds that torch.compile may take for one UNet and size. It is skipped if fewer are left."""
console = Console(highlight=False, width=120)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        configs: configurations of the networks, by variant and part.
        sizes: sizes by variant, the most important first.
        steps: numbers of steps.
        rounds: turns of each side.
        compiles_s: seconds that have to be left for the compiled side, by variant.
        backend: backend of torch.compile.
    """

    configs: Mapping[str, Mapping[str, Mapping[str, Any]]]
    sizes: Mapping[str, tuple[int, ...]]
    steps: tuple[int, ...]
    rounds: int
    compiles_s: Mapping[str, float]
    backend: str = "inductor"


@dataclasses.dataclass
class Case:
    """Seconds per image by side, one list entry per turn. A missing side has a reason."""

    variant: str
    size: int
    steps: int
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)


FULL = Setting(CONFIGS, {"sd15": (512, 1024), "sdxl": (1024, 512)}, (30, 50), 3, COMPILE_S)


def main() -> None:
    """Measure, and print the table at the end."""
    parser = argparse.ArgumentParser(description="Tessera against diffusers on one GPU")
    parser.add_argument(
        "--tiny", action="store_true", help="small networks, two steps, any machine"
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="when to stop starting things")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the server, removes weights
    if not options.tiny and not torch.cuda.is_available():
        parser.error("torch finds no NVIDIA GPU; --tiny runs on a CPU")
    setting = tiny() if options.tiny else FULL
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="tessera-bench-", dir=_roomy_folder()) as folder:
        for variant in setting.sizes:
            cases += measure(variant, setting, Path(folder) / variant, deadline)
    console.print(table(cases))


def measure(variant: str, setting: Setting, folder: Path, deadline: float) -> list[Case]:
    """Measure all cases of a variant."""
    began = time.monotonic()
    sizes = setting.sizes[variant]
    write_random_bundle(folder, variant, setting.configs[variant], max_size=max(sizes))
    console.print(f"{variant}: weights written after {time.monotonic() - began:.0f} s")
    cases = [Case(variant, size, steps) for size in sizes for steps in setting.steps]
    log = folder.with_suffix(".log")
    with serving(
        folder, log, "--engine=auto" if torch.cuda.is_available() else "--engine=torch"
    ) as server:
        console.print(f"{variant}: server ready after {time.monotonic() - began:.0f} s")
        pipe = pipeline_of(folder)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(*_place())
        pipe.unet.to(memory_format=torch.channels_last)
        eager = pipe.unet
        for size in sizes:
            here = [case for case in cases if case.size == size]
            _measure_size(here, server, pipe, setting, deadline)
            pipe.unet = eager
            torch.compiler.reset()
    return cases


def _measure_size(
    cases: list[Case], server: Server, pipe: DiffusionPipeline, setting: Setting, deadline: float
) -> None:
    """Measure both uncompiled sides in turns, then the compiled one, for every number of steps."""
    variant, size = cases[0].variant, cases[0].size
    with Client(server.http, timeout=300) as client:

        def served(steps: int) -> None:
            client.generate(PROMPT, steps=steps, width=size, height=size, seed=1, scheduler="euler")

        def diffused(steps: int) -> None:
            seed = torch.Generator("cpu").manual_seed(1)
            pipe(PROMPT, num_inference_steps=steps, width=size, height=size, generator=seed)

        sides = {"tessera": served, "eager": diffused}
        _take_turns(cases, sides, setting.rounds, deadline)
        if deadline - time.monotonic() < setting.compiles_s[variant]:
            for case in cases:
                case.reasons["compiled"] = "no time"
            return
        pipe.unet = torch.compile(pipe.unet, fullgraph=True, dynamic=False, backend=setting.backend)
        _take_turns(cases, {"compiled": diffused}, setting.rounds, deadline)


def _take_turns(
    cases: list[Case],
    sides: Mapping[str, Callable[[int], None]],
    rounds: int,
    deadline: float,
) -> None:
    """Draw a warm-up image per side, then `rounds` images per side and number of steps."""
    for name, draw in sides.items():
        if time.monotonic() < deadline:
            draw(cases[0].steps)
            console.print(f"  {cases[0].variant} {cases[0].size}: {name} is warm")
    for case in cases:
        for _ in range(rounds):
            for name, draw in sides.items():
                if time.monotonic() > deadline:
                    case.reasons.setdefault(name, "no time")
                    continue
                began = time.perf_counter()
                draw(case.steps)
                case.seconds.setdefault(name, []).append(time.perf_counter() - began)


def table(cases: list[Case]) -> Table:
    """Medians, and the ratios of the server's time to diffusers'."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    shown = Table(
        title=f"{device}: seconds per image (median), one request at a time; torch "
        f"{torch.__version__}, diffusers {diffusers.__version__}, random weights"
    )
    for column in ("model", "size", "steps", *SIDES, "tessera/eager", "tessera/compiled"):
        shown.add_column(column, justify="right")
    for case in cases:
        found = {name: statistics.median(times) for name, times in case.seconds.items()}
        seconds = [f"{found[s]:.3f}" if s in found else case.reasons.get(s, "-") for s in SIDES]
        ratios = [
            f"{found['tessera'] / found[s]:.2f}" if {"tessera", s} <= found.keys() else "-"
            for s in SIDES[1:]
        ]
        size = f"{case.size}x{case.size}"
        shown.add_row(case.variant, size, str(case.steps), *seconds, *ratios)
    return shown


def tiny() -> Setting:
    """A small setting, for a machine without a GPU."""
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    changes: dict[str, dict[str, Any]] = {
        "text_encoder": text | {"num_hidden_layers": 2, "projection_dim": 32},
        "text_encoder_2": text | {"num_hidden_layers": 2, "projection_dim": 32},
        "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    }
    unets: dict[str, dict[str, Any]] = {
        "sd15": {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 32},
        "sdxl": {
            "block_out_channels": (32, 32, 64),
            "attention_head_dim": (2, 2, 4),
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
            "transformer_layers_per_block": (1, 1, 1),
        },
    }
    configs = {
        variant: {
            part: {**config, **(unets[variant] if part == "unet" else changes[part])}
            for part, config in CONFIGS[variant].items()
        }
        for variant in unets
    }
    for parts in configs.values():
        parts["unet"] |= {"sample_size": 16}
    sizes, at_once = {"sd15": (64,), "sdxl": (64,)}, {"sd15": 0.0, "sdxl": 0.0}
    return Setting(configs, sizes, (2,), 1, at_once, backend="eager")


def _place() -> tuple[Any, ...]:
    return ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)


def _roomy_folder() -> str | None:
    """Folder for 7 GB of weights: in memory if there is enough, else the default (`None`)."""
    memory = Path("/dev/shm")
    if memory.is_dir():
        free = os.statvfs(memory)
        if free.f_bavail * free.f_frsize > 16e9:
            return str(memory)
    return None


if __name__ == "__main__":
    main()

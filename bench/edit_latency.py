"""Latency of single edits: the server over HTTP (dense, sparse, auto) against diffusers.

    python -m bench edits --rounds 7
    python -m bench edits sdxl --rounds 3 --steps 6
    python -m bench edits --quality balanced

Diffusers' inpainting pipeline runs in this process with the same weights, steps and number of
threads. Server and diffusers alternate. `sdxl` is SDXL's topology at half its width with random
weights, at 512 x 512 pixels. Its bundle is built first (minutes, 6 GB).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import report, sparse
from bench.edit_quality import square
from bench.server import DEMO_BUNDLE, DEMO_CHECKPOINT, ROOT, Server, serving
from tessera.contract import EDIT_QUALITIES, EditQuality
from tessera_build.demo.draw import render
from tessera_build.demo.scenes import describe, held_out_scenes
from tessera_client import Client
from tests.fakes.checkpoint import topology

RATIOS = (0.02, 0.05, 0.11, 0.2, 0.35, 0.6)
MODES = ("dense", "sparse", "auto")
GUIDANCE = 4.0
_CONDITIONS = (
    "cross_attention_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
FOLDER = ROOT / "out" / "bench-edits"
console = Console(highlight=False)


@dataclass(frozen=True)
class Level:
    """Median milliseconds of an edit at one mask ratio, and its wait for cached inputs.
    `samples_ms` has all turns of each side.
    """

    ratio: float
    diffusers_ms: float
    dense_ms: float
    sparse_ms: float
    auto_ms: float
    auto_mode: str
    cache_load_ms: float
    samples_ms: dict[str, list[float]] = field(default_factory=dict)

    @property
    def auto_loss(self) -> float:
        """Relative loss of `auto` against the faster of `dense` and `sparse`."""
        return self.auto_ms / min(self.dense_ms, self.sparse_ms) - 1


def main() -> None:
    """Measure, print the table, write the report."""
    parser = argparse.ArgumentParser(description="edits against diffusers on this machine")
    parser.add_argument("network", nargs="?", choices=("demo", "sdxl"), default="demo")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ratios", type=float, nargs="*", default=RATIOS)
    parser.add_argument("--quality", choices=list(EDIT_QUALITIES), default=EditQuality.FAST)
    options = parser.parse_args()
    machine = report.describe_machine(options.threads)
    found = compare(
        options.network,
        options.ratios,
        rounds=options.rounds,
        steps=options.steps,
        threads=options.threads,
        quality=options.quality,
    )
    console.print(table(found))
    levels = [asdict(level) | {"auto_loss": level.auto_loss} for level in found]
    settings = {name: getattr(options, name) for name in ("steps", "rounds", "quality")}
    of_quality = "" if options.quality == EditQuality.FAST else f"_{options.quality}"
    name = f"edit_latency_{options.network}{of_quality}"
    out = report.write(name, settings, {"levels": levels}, machine=machine)
    console.print(f"written: {out}")


def compare(
    network: str,
    ratios: Sequence[float] = RATIOS,
    *,
    rounds: int,
    steps: int,
    threads: int,
    quality: str = EditQuality.FAST,
) -> list[Level]:
    """Measure a server for the network (`demo` or `sdxl`) and diffusers in turns."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    bundle, pipe, scale = _demo() if network == "demo" else _sdxl()
    pipe.set_progress_bar_config(disable=True)
    flags = [f"--threads={threads}", f"--edit-quality={quality}"]
    with serving(bundle, FOLDER / "log", *flags) as server:
        return measure(server, pipe, ratios, rounds=rounds, steps=steps, scale=scale)


def _demo() -> tuple[Path, DiffusionPipeline, int]:
    """Bundle, pipeline, and the size of the image as a multiple of the demo's."""
    return DEMO_BUNDLE, StableDiffusionInpaintPipeline.from_pretrained(str(DEMO_CHECKPOINT)), 1


def _sdxl() -> tuple[Path, DiffusionPipeline, int]:
    """SDXL's topology at half its width, with small text encoders and a small VAE."""
    checkpoint, bundle = FOLDER / "sdxl-checkpoint", FOLDER / "sdxl"
    if not checkpoint.exists():
        pipe = topology("sdxl")
        own = {k: v for k, v in pipe.unet.config.items() if k in _CONDITIONS}
        unet = UNet2DConditionModel(**{**sparse.CONFIG, **own, "sample_size": 64})
        pipe.register_modules(unet=unet)
        pipe.save_pretrained(checkpoint)
    build = [str(Path(sys.executable).parent / "tessera-build"), "bundle", str(checkpoint)]
    subprocess.run([*build, "-o", str(bundle)], check=True)
    return bundle, StableDiffusionXLInpaintPipeline.from_pretrained(str(checkpoint)), 4


def measure(
    server: Server,
    pipe: DiffusionPipeline,
    ratios: Sequence[float],
    *,
    rounds: int,
    steps: int,
    scale: int,
) -> list[Level]:
    """Measure all sides in turns at every ratio. The template is recorded before, with the prompt
    and without.
    """
    before, after = held_out_scenes(2, seed=3)
    image, prompt = (render(before) * 255).round().astype(np.uint8), describe(after)
    image = np.kron(image, np.ones((scale, scale, 1), np.uint8))
    levels = []
    with Client(server.http, timeout=900) as client:
        client.register_template(image, steps=steps, prompt=prompt)
        for ratio in track(ratios, description="edits against diffusers", console=console):
            mask = np.kron(square((64, 64), ratio), np.ones((scale, scale), np.uint8))

            def edit(mode: str, seed: int, mask: Any = mask) -> Any:
                options: dict[str, Any] = {"steps": steps, "guidance": GUIDANCE, "mode": mode}
                return client.edit(image, mask, prompt, seed=seed, **options).info

            def diffusers(seed: int, mask: Any = mask) -> None:
                pipe(
                    prompt,
                    image=Image.fromarray(image),
                    mask_image=Image.fromarray(mask),
                    strength=1.0,
                    width=image.shape[1],
                    height=image.shape[0],
                    num_inference_steps=steps,
                    guidance_scale=GUIDANCE,
                    generator=torch.Generator("cpu").manual_seed(seed),
                )

            levels.append(_level(ratio, rounds, edit, diffusers))
    return levels


def table(found: Sequence[Level]) -> Table:
    """The table of medians."""
    shown = Table(title="Latency of a single edit (median ms)")
    columns = ("ratio", "diffusers", "dense", "sparse", "auto", "auto chose", "auto loses")
    for column in (*columns, "sparse / diffusers", "wait for caches"):
        shown.add_column(column, justify="right")
    for level in found:
        times = (level.diffusers_ms, level.dense_ms, level.sparse_ms, level.auto_ms)
        shown.add_row(
            f"{level.ratio:.2f}",
            *(f"{t:.0f}" for t in times),
            level.auto_mode,
            f"{100 * level.auto_loss:.1f} %",
            f"{level.sparse_ms / level.diffusers_ms:.2f}",
            f"{level.cache_load_ms:.0f}",
        )
    return shown


def _level(
    ratio: float,
    rounds: int,
    edit: Callable[[str, int], Any],
    diffusers: Callable[[int], None],
) -> Level:
    times: dict[str, list[float]] = {name: [] for name in (*MODES, "diffusers")}
    infos: dict[str, Any] = {}
    for seed in range(rounds + 1):
        for mode in MODES:
            began = time.perf_counter()
            infos[mode] = edit(mode, seed)
            times[mode].append(1e3 * (time.perf_counter() - began))
        began = time.perf_counter()
        diffusers(seed)
        times["diffusers"].append(1e3 * (time.perf_counter() - began))
    middle = {name: statistics.median(found[1:]) for name, found in times.items()}
    return Level(
        ratio=ratio,
        **{f"{name}_ms": value for name, value in middle.items()},
        auto_mode=infos["auto"].mode,
        cache_load_ms=infos["sparse"].cache_load_ms,
        samples_ms={name: [round(ms, 1) for ms in found[1:]] for name, found in times.items()},
    )


if __name__ == "__main__":
    main()

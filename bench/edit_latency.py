"""One edit at a time: the server over HTTP, dense, sparse and automatic, against diffusers'
inpainting pipeline in this process, on the same weights, steps and number of threads, taking turns.

    python -m bench.edit_latency --rounds 7
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.edit_quality import square
from bench.server import DEMO_BUNDLE, DEMO_CHECKPOINT, ROOT, Server, serving
from tessera_build.demo.draw import render
from tessera_build.demo.scenes import describe, held_out_scenes
from tessera_client import Client

RATIOS = (0.02, 0.05, 0.11, 0.2, 0.35, 0.6)
MODES = ("dense", "sparse", "auto")
GUIDANCE = 4.0
RESULTS = ROOT / "bench" / "results" / "edit_latency.json"
console = Console(highlight=False)


@dataclass(frozen=True)
class Level:
    """Median milliseconds of an edit at one mask ratio, and what it spent waiting for cached
    inputs.
    """

    ratio: float
    diffusers_ms: float
    dense_ms: float
    sparse_ms: float
    auto_ms: float
    auto_mode: str
    cache_load_ms: float

    @property
    def auto_loss(self) -> float:
        """How much `auto` loses to the better of the two."""
        return self.auto_ms / min(self.dense_ms, self.sparse_ms) - 1


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="edits against diffusers on this machine")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    log = ROOT / "out" / "bench-edits" / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with serving(options.bundle, log, f"--threads={options.threads}") as server:
        found = measure(server, rounds=options.rounds, steps=options.steps, threads=options.threads)
    console.print(table(found))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    levels = [asdict(level) | {"auto_loss": level.auto_loss} for level in found]
    settings = {"threads": options.threads, "steps": options.steps, "rounds": options.rounds}
    options.out.write_text(json.dumps({**settings, "levels": levels}, indent=1) + "\n")
    console.print(f"written: {options.out}")


def measure(server: Server, *, rounds: int, steps: int, threads: int) -> list[Level]:
    """Every side in turn at every ratio, the template recorded beforehand."""
    torch.set_num_threads(threads)
    pipe = StableDiffusionInpaintPipeline.from_pretrained(str(DEMO_CHECKPOINT))
    pipe.set_progress_bar_config(disable=True)
    before, after = held_out_scenes(2, seed=3)
    image, prompt = (render(before) * 255).round().astype(np.uint8), describe(after)
    levels = []
    with Client(server.http) as client:
        client.register_template(image, steps=steps)
        for ratio in track(RATIOS, description="edits against diffusers", console=console):
            mask = square((64, 64), ratio)

            def edit(mode: str, seed: int, mask: Any = mask) -> Any:
                options: dict[str, Any] = {"steps": steps, "guidance": GUIDANCE, "mode": mode}
                return client.edit(image, mask, prompt, seed=seed, **options).info

            def diffusers(seed: int, mask: Any = mask) -> None:
                pipe(
                    prompt,
                    image=Image.fromarray(image),
                    mask_image=Image.fromarray(mask),
                    width=image.shape[1],
                    height=image.shape[0],
                    num_inference_steps=steps,
                    guidance_scale=GUIDANCE,
                    generator=torch.Generator("cpu").manual_seed(seed),
                )

            levels.append(_level(ratio, rounds, edit, diffusers))
    return levels


def table(found: Sequence[Level]) -> Table:
    """The medians, for people."""
    shown = Table(title="one edit at a time, milliseconds")
    columns = ("ratio", "diffusers", "dense", "sparse", "auto", "auto took", "auto loses")
    for column in (*columns, "sparse / diffusers", "waits for caches"):
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
    )


if __name__ == "__main__":
    main()

"""Quality of sparse edits, compared to dense edits of the same request and rated by a checker.

    python -m bench.edit_quality --bundle bundles/demo --cases 100

In each case the template is a drawn scene. One of its shapes, inside a square mask, is replaced by
another. The demo model's checker rates the results. Writes `bench/results/edit_quality.json` and
`docs/images/edit-quality.webp`.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import report
from bench.edit_lab import Edit, Lab, Way
from bench.plots import save
from bench.report import describe_machine
from bench.server import DEMO_BUNDLE, ROOT
from tessera.templates.storage import Storage
from tessera.types import Array
from tessera_build.demo.checker import score
from tessera_build.demo.draw import render
from tessera_build.demo.scenes import (
    CANVAS,
    COLOURS,
    SHAPES,
    Scene,
    describe,
    held_out_scenes,
)
from tessera_build.similarity import ssim

RATIOS = (0.02, 0.05, 0.08, 0.11, 0.15, 0.2, 0.27, 0.35, 0.45, 0.6)
NAME = "edit_quality"
FIGURE = ROOT / "docs" / "images" / "edit-quality.webp"
WAYS = {
    "float32": Way(),
    "float16": Way(Storage("float16")),
    "int8": Way(Storage("int8")),
    "every 2nd step": Way(Storage("float16", 2)),
    "every 4th step": Way(Storage("float16", 4)),
    "statistics of the template": Way(live_norms=False),
    "branches with their own prompts": Way(own_prompt=True),
    "mask wider by 1 latent": Way(dilate=1),
    "mask wider by 2 latents": Way(dilate=2),
    "2 dense steps first": Way(dense_first=2),
    "5 dense steps first": Way(dense_first=5),
    "every 5th step dense": Way(dense_every=5),
    "1 dense step, wider by 1": Way(dense_first=1, dilate=1),
    "2 dense steps, wider by 1": Way(dense_first=2, dilate=1),
    "2 dense steps, wider by 2": Way(dense_first=2, dilate=2),
    "3 dense steps, wider by 2": Way(dense_first=3, dilate=2),
}
console = Console(highlight=False)


@dataclass(frozen=True)
class Case:
    """One edit and the scene that it should show. `ratio` is the mask's share of the image."""

    edit: Edit
    wanted: Scene
    ratio: float


@dataclass(frozen=True)
class Measured:
    """A sparse edit compared to the dense one, inside the mask.

    `checked` and `checked_dense` are the shares of attributes that the checker finds right.
    """

    way: str
    ratio: float
    ssim: float
    psnr: float
    checked: float
    checked_dense: float
    speedup: float


def main() -> None:
    """Make the edits, print the table, write the report and the figure."""
    parser = argparse.ArgumentParser(description="sparse edits against dense ones")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    lab, machine = Lab(options.bundle, threads=options.threads), describe_machine(options.threads)
    found = measure(lab, cases(options.cases, options.steps), options.ways)
    console.print(table(found))
    rows = [_rounded(asdict(m)) for m in found]
    settings = {"bundle": options.bundle.name, "steps": options.steps, "cases": options.cases}
    out = report.write(NAME, settings, rows, machine=machine, out=options.out)
    draw_curves(found, options.figure)
    console.print(f"written: {out}, {options.figure}")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def cases(count: int, steps: int) -> list[Case]:
    """Held-out scenes, with masks of all ratios in equal numbers."""
    rng = random.Random(1)
    scenes = held_out_scenes(count, seed=11)
    ratios = [RATIOS[i * len(RATIOS) // count] for i in range(count)]
    return [_case(s, r, steps, rng) for s, r in zip(scenes, ratios, strict=True)]


def measure(lab: Lab, todo: Sequence[Case], ways: Iterable[str]) -> list[Measured]:
    """Measure every case with every one of these `WAYS`."""
    found = []
    for case in track(todo, description="edits", console=console):
        dense = lab.dense(case.edit)
        record = cache(partial(lab.record, case.edit))
        for name in ways:
            way = WAYS[name]
            prompts = ("", case.edit.prompt) if way.own_prompt else ("",)
            sparse = lab.sparse(case.edit, way, record(way.storage, prompts))
            found.append(
                Measured(
                    way=name,
                    ratio=case.ratio,
                    ssim=ssim(sparse.image, dense.image, case.edit.mask),
                    psnr=psnr(sparse.image, dense.image, case.edit.mask),
                    checked=_checked(sparse.image, case.wanted),
                    checked_dense=_checked(dense.image, case.wanted),
                    speedup=dense.milliseconds / sparse.milliseconds,
                )
            )
    return found


def psnr(one: Array, other: Array, mask: Array) -> float:
    """Peak signal to noise inside the mask, in decibels, 99 at most."""
    difference = one.astype(np.float64)[mask >= 128] - other.astype(np.float64)[mask >= 128]
    error = float(np.square(difference).mean())
    return min(99.0, 10 * float(np.log10(255**2 / max(error, 1e-9))))


def table(found: Sequence[Measured]) -> Table:
    """Medians by way, for masks up to 0.35 and for larger ones, and the checker's shares."""
    shown = Table(title="Sparse edits compared to dense ones, inside the mask")
    shown.add_column("way", no_wrap=True)
    columns = ("SSIM <= 0.35", "SSIM > 0.35", "PSNR", "right", "right (dense)", "speedup")
    for column in columns:
        shown.add_column(column, justify="right")
    for name in dict.fromkeys(m.way for m in found):
        of_way = [m for m in found if m.way == name]
        small = [m.ssim for m in of_way if m.ratio <= 0.35]
        large = [m.ssim for m in of_way if m.ratio > 0.35]
        shown.add_row(
            name,
            *(f"{statistics.median(v):.3f}" if v else "" for v in (small, large)),
            f"{statistics.median(m.psnr for m in of_way):.1f}",
            f"{100 * statistics.mean(m.checked for m in of_way):.0f} %",
            f"{100 * statistics.mean(m.checked_dense for m in of_way):.0f} %",
            f"{statistics.median(m.speedup for m in of_way):.2f}",
        )
    return shown


def draw_curves(found: Sequence[Measured], path: Path) -> None:
    """Draw SSIM over the mask's ratio, a curve for each way."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name in dict.fromkeys(m.way for m in found):
        of_way = [m for m in found if m.way == name]
        ratios = sorted({m.ratio for m in of_way})
        medians = [statistics.median(m.ssim for m in of_way if m.ratio == r) for r in ratios]
        axes.plot(ratios, medians, marker="o", markersize=3, linewidth=1.2, label=name)
    axes.axhline(0.95, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="mask ratio", ylabel="SSIM of sparse and dense edit, inside the mask")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
    plt.close(figure)


def _case(scene: Scene, ratio: float, steps: int, rng: random.Random) -> Case:
    """Replace the scene's first shape."""
    old = scene.items[0]
    used = {old.colour, scene.background}
    new = replace(
        old,
        shape=rng.choice([s for s in SHAPES if s != old.shape]),
        colour=rng.choice([c for c in COLOURS if c not in used]),
    )
    wanted = Scene((new, *scene.items[1:]), scene.background, scene.pattern)
    image = (render(scene) * 255).round().astype(np.uint8)
    edit = Edit(image, square(old.centre, ratio), describe(wanted), rng.randrange(1, 10**6), steps)
    return Case(edit, wanted, ratio)


def square(centre: tuple[float, float], ratio: float) -> Array:
    """A square mask of this share of the image around a point, moved to fit inside the image."""
    side = round(CANVAS * ratio**0.5)
    x, y = (int(min(max(0, c - side / 2), CANVAS - side)) for c in centre)
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    mask[y : y + side, x : x + side] = 255
    return mask


def _checked(image: Array, wanted: Scene) -> float:
    """Share of the prompt's attributes that the checker finds."""
    found = score(image.astype(np.float32) / 255, wanted).right.values()
    return sum(right for right, _ in found) / sum(asked for _, asked in found)


if __name__ == "__main__":
    main()

"""The effect of the demo's LoRAs, and the loss with `lora_policy` bounded.

    python -m bench.lora_quality --pictures 40

Compares images whose LoRA starts at step K to images that have it from the start. Images are drawn
by diffusers; tests show that Tessera's are the same. Writes `bench/results/lora_quality.json` and
`docs/images/lora-bounded.webp`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import report
from bench.plots import save
from bench.server import DEMO_CHECKPOINT, ROOT
from tessera_build.demo.checker import score
from tessera_build.demo.scenes import Scene, describe, held_out_scenes
from tessera_build.demo.styles import STYLES, shows
from tessera_build.similarity import ssim

STEPS, GUIDANCE = 20, 4.0
WITHOUT = (0, 1, 2, 3, 4, 6, 8, 12, 20)
"""Steps without the LoRA; 0 is `exact`."""

FIGURE = ROOT / "docs" / "images" / "lora-bounded.webp"
console = Console(highlight=False)


@dataclass(frozen=True)
class Measured:
    """Images of one LoRA that starts after some steps.

    Attributes:
        style: name of the LoRA.
        without: number of steps without it.
        ssim: SSIM with the image that has it from the start, for each prompt.
        styled: share of images in the LoRA's style.
        right: share of the prompts' attributes that the checker finds.
    """

    style: str
    without: int
    ssim: list[float]
    styled: float
    right: float


def main() -> None:
    """Draw images, print the table, write the report and the figure."""
    parser = argparse.ArgumentParser(description="what the demo's LoRAs change")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="another file for the report")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    machine = report.describe_machine(options.threads)
    torch.set_num_threads(options.threads)
    scenes = held_out_scenes(options.pictures, seed=7)
    found = [m for style in STYLES for m in measure(style, scenes)]
    console.print(table(found))
    rows = [asdict(m) for m in found]
    settings = report.settings_of(options)
    file = report.write("lora_quality", settings, rows, machine=machine, out=options.out)
    draw_curves(found, options.figure)
    console.print(f"written: {file}, {options.figure}")


def measure(style: str, scenes: Sequence[Scene]) -> list[Measured]:
    """Measure one LoRA, started after each number of steps in `WITHOUT`."""
    pipe = StableDiffusionPipeline.from_pretrained(DEMO_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    folder = DEMO_CHECKPOINT.parent / "loras"
    pipe.load_lora_weights(str(folder), weight_name=f"{style}.safetensors")
    found: list[Measured] = []
    exact: list[npt.NDArray[Any]] = []
    for without in track(WITHOUT, description=style, console=console):
        pictures = [_draw(pipe, s, seed, without) for seed, s in enumerate(scenes)]
        exact = exact or pictures
        everywhere = np.full(pictures[0].shape[:2], 255, np.uint8)
        both = list(zip(pictures, scenes, strict=True))
        checked = [score(p / np.float32(255), s).fraction for p, s in both]
        found.append(
            Measured(
                style,
                without,
                [ssim(p, e, everywhere) for p, e in zip(pictures, exact, strict=True)],
                statistics.mean(shows(p / np.float32(255), s, style) for p, s in both),
                statistics.mean(checked),
            )
        )
    return found


def _draw(
    pipe: StableDiffusionPipeline, scene: Scene, seed: int, without: int
) -> npt.NDArray[np.uint8]:
    """An image (h, w, 3) whose UNet gets the LoRA after some steps, unlike its text encoder."""

    def bring_in(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == without:
            pipe.unet.enable_adapters()
        return values

    if without:
        pipe.unet.disable_adapters()
    else:
        pipe.unet.enable_adapters()
    result = pipe(
        describe(scene),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(seed),
        callback_on_step_end=bring_in,
    )
    return np.asarray(result.images[0])


def table(found: Sequence[Measured]) -> Table:
    """Medians by LoRA and steps without it."""
    shown = Table(title=f"LoRAs that start late, in {STEPS} steps")
    for column in ("LoRA", "steps without", "SSIM with exact", "in its style", "attributes right"):
        shown.add_column(column, justify="left" if column == "LoRA" else "right")
    for m in found:
        similar = statistics.median(m.ssim)
        shown.add_row(
            m.style,
            str(m.without),
            f"{similar:.3f}",
            f"{100 * m.styled:.0f} %",
            f"{100 * m.right:.0f} %",
        )
    return shown


def draw_curves(found: Sequence[Measured], path: Path) -> None:
    """Draw SSIM and share in style over the number of steps without, a curve for each LoRA."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharex=True)
    for style in dict.fromkeys(m.style for m in found):
        of_style = [m for m in found if m.style == style]
        steps = [m.without for m in of_style]
        axes[0].plot(steps, [statistics.median(m.ssim) for m in of_style], marker="o", label=style)
        axes[1].plot(steps, [m.styled for m in of_style], marker="o", label=style)
    axes[0].set(xlabel=f"steps without the LoRA, of {STEPS}", ylabel="SSIM with exact")
    axes[1].set(xlabel=f"steps without the LoRA, of {STEPS}", ylabel="share in its style")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""`tessera-build`: makes bundles."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tessera.errors import TesseraError

app = typer.Typer(help="Build bundles for Tessera.", no_args_is_help=True, add_completion=False)
console = Console()
ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "build" / "demo_model" / "base"


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the bundle.")] = Path(
        "bundles/demo"
    ),
    force: Annotated[bool, typer.Option(help="Build even if the bundle is up to date.")] = False,
) -> None:
    """Build the demo bundle from the checkpoint in the repository."""
    from tessera.manifest import Defaults, Limits
    from tessera_build.bundle import build_bundle, is_current

    _quiet()
    if not force and is_current(out, DEMO_MODEL):
        console.print(f"{out} is up to date")
        return
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("loading")

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        manifest = build_bundle(
            DEMO_MODEL,
            out,
            defaults=Defaults(steps=20, guidance=4.0, width=128, height=128, scheduler="euler"),
            limits=Limits(min_size=64, max_size=256, max_rows=16),
            progress=progress,
        )
    size = sum(entry.bytes for entry in manifest.files.values()) / 1e6
    console.print(
        f"{out}: {len(manifest.graphs)} graphs, {size:.0f} MB, digest {manifest.digest[:12]}"
    )


@app.command("train-demo")
def train_demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where to write the checkpoint.")
    ] = DEMO_MODEL,
    work: Annotated[
        Path, typer.Option(help="Checkpoints and sample sheets; training resumes from here.")
    ] = Path("out/train-demo"),
    steps: Annotated[int, typer.Option(help="Training steps of the UNet.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
) -> None:
    """Train the demo model from nothing: hours on a laptop, minutes on a GPU."""
    from tessera_build.demo.training import Recipe
    from tessera_build.demo.training import train_demo as train

    _quiet()
    score = train(Recipe(unet_steps=steps, seed=seed), out, work)
    console.print(f"{out}: {100 * score.fraction:.1f} % of attributes right on unseen prompts")
    for name, (right, asked) in score.right.items():
        console.print(f"  {name:<10} {right}/{asked}")


def main() -> None:
    """Entry point of the console script: a fault that is not ours to fix is one sentence."""
    try:
        app()
    except TesseraError as error:
        Console(stderr=True).print(f"tessera-build: {error}", style="red", soft_wrap=True)
        sys.exit(1)


def _quiet() -> None:
    """Keep the libraries' own bars and hints off the terminal; their errors still show."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)

"""`tessera-build`: makes bundles."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tessera.errors import BundleError, TesseraError

if TYPE_CHECKING:
    from tessera_build.addons import AddOns
    from tessera_build.bundle import Choices
    from tessera_build.compile import Compiler, Job

app = typer.Typer(help="Build bundles for Tessera.", no_args_is_help=True, add_completion=False)
console = Console()
ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "build" / "demo_model" / "base"


Place = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=PLACE", help="Where a ControlNet runs: cpu, or a GPU as gpu:1."),
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the bundle.")] = Path(
        "bundles/demo"
    ),
    force: Annotated[bool, typer.Option(help="Build even if the bundle is up to date.")] = False,
) -> None:
    """Build the demo bundle from the checkpoint in the repository."""
    from tessera_build.addons import AddOns
    from tessera_build.bundle import Choices

    folder = DEMO_MODEL.parent
    addons = AddOns(
        {path.name: path for path in sorted((folder / "controlnets").glob("*/"))},
        sorted((folder / "loras").glob("*.safetensors")),
    )
    _build(str(DEMO_MODEL), out, Choices(steps=20, guidance=4.0), addons, force=force)


@app.command()
def bundle(
    checkpoint: Annotated[
        str,
        typer.Argument(help='A diffusers folder, a .safetensors file, or a hub\'s "owner/name".'),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the bundle.")],
    config: Annotated[
        Path | None,
        typer.Option(help="For a single file without a hub: a diffusers folder with its configs."),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="A ControlNet to build in; may be given several times."
        ),
    ] = None,
    place: Place = None,
    lora: Annotated[
        list[Path] | None,
        typer.Option(help="A LoRA (.safetensors) to copy in; may be given several times."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default of STEPS.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Default of GUIDANCE.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Default of SCHEDULER.")] = None,
    size: Annotated[int | None, typer.Option(help="Default of WIDTH and HEIGHT.")] = None,
    min_size: Annotated[int | None, typer.Option(help="Smallest width and height.")] = None,
    max_size: Annotated[int | None, typer.Option(help="Largest width and height.")] = None,
    max_rows: Annotated[
        int, typer.Option(min=1, help="Largest batch of one UNet call (2 rows for a request).")
    ] = 16,
    lora_bound: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the steps that lora_policy bounded may do without LoRAs."
        ),
    ] = 0.2,
    lora_rank: Annotated[
        int,
        typer.Option(
            min=0,
            help="Largest rank of a request's LoRAs together for the low-rank side path; 0 leaves "
            "its graphs out.",
        ),
    ] = 64,
    force: Annotated[bool, typer.Option(help="Build even if the bundle is up to date.")] = False,
) -> None:
    """Build a bundle from a diffusers checkpoint; what is left out follows from the checkpoint."""
    from tessera_build.addons import AddOns, read_controlnets
    from tessera_build.bundle import Choices

    choices = Choices(
        steps, guidance, scheduler, size, min_size, max_size, max_rows, lora_bound, lora_rank
    )
    addons = AddOns(read_controlnets(controlnet or []), lora or [], place or [])
    _build(checkpoint, out, choices, addons, force=force, config=config)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder that tessera-build wrote.")],
) -> None:
    """Compare every graph in ONNX Runtime, and on a GPU in its engine, with torch; exit code 1 if
    one differs.
    """
    _quiet()
    from tessera_build.verify import kinds_here, tolerance_of, verify_bundle

    with console.status("checking the files ...") as status:
        found = verify_bundle(
            bundle,
            kinds=kinds_here(bundle),
            progress=lambda graph: status.update(f"running {graph} ..."),
        )
    table = Table(title=f"{bundle}: engines against torch on the CPU")
    for column in ("graph", "random inputs", "largest difference", "accepted", ""):
        table.add_column(column)
    good = {name: result.difference <= tolerance_of(name) for name, result in found.items()}
    for name, result in found.items():
        verdict = "[green]well" if good[name] else "[red]differs"
        cases, limit = str(result.cases), f"{tolerance_of(name):.0e}"
        table.add_row(name, cases, f"{result.difference:.1e}", limit, verdict)
    console.print(table)
    if not all(good.values()):
        raise typer.Exit(1)


@app.command("compile")
def compile_plans(
    bundle: Annotated[Path, typer.Argument(help="Folder that tessera-build wrote.")],
    precision: Annotated[str, typer.Option(help="fp16, bf16 or fp32.")] = "fp16",
    stripped: Annotated[
        bool, typer.Option("--stripped", help="Leave the weights out; they are refitted on load.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be built.")] = False,
    architecture: Annotated[
        str, typer.Option(help="With --dry-run: of the GPU, as in sm_90.")
    ] = "sm_90",
    tensorrt: Annotated[str, typer.Option(help="With --dry-run: TensorRT's version.")] = "11.4.0",
) -> None:
    """Compile a bundle's graphs into TensorRT engines for this machine's GPU.

    Plans that are there already are kept; an interrupted run goes on where it stopped.
    """
    _quiet()
    from tessera_build.compile import compile_job, plan_jobs

    compiler: Compiler | None = None
    if not dry_run:
        compiler = _compiler()
        architecture, tensorrt = compiler.architecture, compiler.version
    jobs = plan_jobs(
        bundle,
        precision=precision,
        architecture=architecture,
        tensorrt=tensorrt,
        stripped=stripped,
    )
    console.print(_jobs_table(jobs, f"{bundle}: {architecture}, TensorRT {tensorrt}"))
    if compiler is None:
        return
    missing = [job for job in jobs if not job.done]
    for number, job in enumerate(missing, 1):
        with console.status(f"compiling {job.key.graph}, {number} of {len(missing)} ..."):
            record = compile_job(job, compiler, bundle)
        console.print(
            f"{job.key.graph}: {record.canary_built:.1e} from torch as built, "
            f"{record.canary_refitted:.1e} after a refit"
        )


def _compiler() -> Compiler:
    """TensorRT on this machine's GPU."""
    try:
        from tessera_build.tensorrt import PolygraphyCompiler
    except ImportError as error:
        raise BundleError(
            f"compiling needs TensorRT and polygraphy ({error}); pip install tensorrt polygraphy, "
            "or run inside NVIDIA's container"
        ) from None
    return PolygraphyCompiler()


def _jobs_table(jobs: list[Job], title: str) -> Table:
    table = Table(title=title)
    for column in ("graph", "precision", "input", "smallest", "likeliest", "largest", "file"):
        table.add_column(column, no_wrap=column != "file")
    for job in jobs:
        first = [job.key.graph, job.key.precision]
        for name, shapes in job.key.profile.items():
            if name.startswith("skip_"):
                continue  # they follow from the others
            sizes = (shapes.smallest, shapes.likeliest, shapes.largest)
            state = "there" if job.done else "to build"
            table.add_row(
                *first, name, *("x".join(map(str, s)) for s in sizes), state if first[0] else ""
            )
            first = ["", ""]
    return table


@app.command("train-demo")
def train_demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where to write the checkpoint.")
    ] = DEMO_MODEL,
    work: Annotated[
        Path, typer.Option(help="Checkpoints and sample sheets; training resumes from here.")
    ] = Path("out/train-demo"),
    steps: Annotated[int, typer.Option(help="Training steps of the UNet.")] = 12_000,
    start: Annotated[
        Path | None, typer.Option(help="A checkpoint of the demo model to go on from.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    only_loras: Annotated[
        bool, typer.Option("--only-loras", help="Train its LoRAs on a checkpoint that is there.")
    ] = False,
    only_controlnets: Annotated[
        bool,
        typer.Option("--only-controlnets", help="Train its ControlNets, likewise."),
    ] = False,
) -> None:
    """Train the demo model, from nothing or from a checkpoint, its LoRAs and its ControlNets: hours
    on a laptop.
    """
    _quiet()
    everything = not (only_loras or only_controlnets)
    if everything:
        _train_checkpoint(out, work, steps=steps, start=start, seed=seed)
    if everything or only_loras:
        _train_loras(out, work, seed=seed)
    if everything or only_controlnets:
        _train_controlnets(out, work, seed=seed)


def _train_checkpoint(out: Path, work: Path, *, steps: int, start: Path | None, seed: int) -> None:
    from tessera_build.demo.training import Recipe
    from tessera_build.demo.training import train_demo as train

    score = train(Recipe(unet_steps=steps, seed=seed, start=start), out, work)
    console.print(f"{out}: {100 * score.fraction:.1f} % of attributes right on unseen prompts")
    for name, (right, asked) in score.right.items():
        console.print(f"  {name:<10} {right}/{asked}")


def _train_loras(out: Path, work: Path, *, seed: int) -> None:
    from tessera_build.demo.lora_training import JUDGED, train_loras

    found = train_loras(out, out.parent / "loras", work / "loras", seed=seed)
    for style, (without, having) in found.items():
        console.print(f"{style}: {having} of {JUDGED} pictures in its style, {without} without it")


def _train_controlnets(out: Path, work: Path, *, seed: int) -> None:
    from tessera_build.demo.controlnet_training import train_controlnets

    found = train_controlnets(out, out.parent / "controlnets", work / "controlnets", seed=seed)
    for name, (without, having) in found.items():
        console.print(f"{name}: {having}; without it {without}")
        for key, (right, asked) in having.score.right.items():
            console.print(f"  {key:<10} {right}/{asked}, {without.score.right[key][0]} without it")


def main() -> None:
    """Entry point of the console script: a fault that is not ours to fix is one sentence."""
    try:
        app()
    except TesseraError as error:
        Console(stderr=True).print(f"tessera-build: {error}", style="red", soft_wrap=True)
        sys.exit(1)


def _build(
    source: str,
    out: Path,
    choices: Choices,
    addons: AddOns,
    *,
    force: bool,
    config: Path | None = None,
) -> None:
    _quiet()
    from tessera_build.addons import install_loras
    from tessera_build.bundle import build_bundle, is_current
    from tessera_build.checkpoint import find_checkpoint

    checkpoint = find_checkpoint(source)
    addons.check()
    if not force and is_current(out, checkpoint, choices, addons):
        install_loras(out, addons.loras)
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
            checkpoint, out, choices=choices, progress=progress, config=config, addons=addons
        )
    size = sum(entry.bytes for entry in manifest.files.values()) / 1e6
    console.print(
        f"{out}: {manifest.variant}, {len(manifest.graphs)} graphs, {size:.0f} MB, "
        f"digest {manifest.digest[:12]}"
    )


def _quiet() -> None:
    """Keep the libraries' own bars and hints off the terminal; their errors still show."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)

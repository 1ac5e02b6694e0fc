"""`tessera-build`: makes bundles."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessera.errors import BundleError, TesseraError
from tessera.terminal.console import Console
from tessera_build import options as o

if TYPE_CHECKING:
    from tessera_build.addons import AddOns
    from tessera_build.bundle import Choices
    from tessera_build.compile import Compiler

app = typer.Typer(help="Build bundles for Tessera.", no_args_is_help=True, add_completion=False)
console = Console()
ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "build" / "demo_model" / "base"


@app.command()
def demo(
    out: o.Out = Path("bundles/demo"),
    force: o.Force = False,
) -> None:
    """Build the demo bundle from the checkpoint in the repository."""
    _quiet()
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
    checkpoint: o.Checkpoint,
    out: o.Out,
    config: o.Config = None,
    base: o.Base = None,
    revision: o.Revision = None,
    variant: o.Files = None,
    vae: o.Vae = None,
    force: o.Force = False,
    controlnet: o.ControlNets = None,
    place: o.Places = None,
    lora: o.Loras = None,
    steps: o.Steps = None,
    guidance: o.Guidance = None,
    scheduler: o.Scheduler = None,
    size: o.Size = None,
    lora_bound: o.LoraBound = 0.2,
    min_size: o.MinSize = None,
    max_size: o.MaxSize = None,
    max_rows: o.MaxRows = 16,
    lora_rank: o.LoraRank = 64,
    prediction_type: o.PredictionType = None,
    zero_snr: o.ZeroSnr = None,
    precision: o.StoredPrecision = None,
) -> None:
    """Build a bundle from a diffusers checkpoint.

    Defaults and limits that are left out follow from the checkpoint.
    """
    _quiet()
    from tessera_build.addons import AddOns, read_controlnets
    from tessera_build.bundle import Choices
    from tessera_build.checkpoint import find_checkpoint
    from tessera_build.markers import Training
    from tessera_build.parts import find_vae

    choices = Choices(
        *(steps, guidance, scheduler, size, min_size, max_size, max_rows, lora_bound, lora_rank),
        training=Training(prediction_type, zero_snr),
        precision=precision and precision.value,
        base=find_checkpoint(base) if base else None,
        vae=find_vae(vae) if vae else None,
        files=variant,
    )
    addons = AddOns(read_controlnets(controlnet or []), lora or [], place or [])
    _build(checkpoint, out, choices, addons, force=force, config=config, revision=revision)


@app.command()
def verify(bundle: o.Folder) -> None:
    """Compare every graph in its engines with torch, and a picture with diffusers' pipeline; exit
    with 1 if one differs.
    """
    _quiet()
    from tessera.manifest import read_manifest
    from tessera_build.reports import verification_table
    from tessera_build.verify import kinds_here, tolerance_of, verify_bundle

    with console.doing("checking the files ...") as news:
        found = verify_bundle(
            bundle,
            kinds=kinds_here(bundle),
            progress=lambda part: news(f"running {part} ..."),
        )
    precision = read_manifest(bundle).precision
    accepted = {name: tolerance_of(name, precision) for name in found}
    title = f"{bundle}: engines against torch on the CPU, a picture against diffusers"
    console.print(verification_table(title, found, accepted))
    if any(result.difference > accepted[name] for name, result in found.items()):
        raise typer.Exit(1)


@app.command()
def probe(
    bundle: o.Folder,
    minutes: Annotated[float, typer.Option(min=0.1, help="Longest time it may take.")] = 15.0,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON file of prompts, for a checkpoint of one subject.")
    ] = None,
) -> None:
    """Measure where sparse edits differ from dense ones, and write which margins and dense steps
    each EDIT_QUALITY takes with this bundle.
    """
    _quiet()
    from tessera_build.probe.cases import GENERAL, read_prompts
    from tessera_build.probe.run import probe as measure
    from tessera_build.probe.tables import probe_tables

    drawn = read_prompts(prompts) if prompts else GENERAL
    with console.doing("opening the bundle ...") as news:
        found, path = measure(
            bundle, drawn, minutes=minutes, progress=lambda case: news(f"edit {case + 1} ...")
        )
    for table in probe_tables(found):
        console.print(table)
    console.say(f"{path}: {found.how['cases']} edits in {found.how['minutes']} minutes")


@app.command("compile")
def compile_plans(
    bundle: o.Folder,
    precision: Annotated[
        o.Precision, typer.Option(help="Number format of weights and activations.")
    ] = o.Precision.FP16,
    stripped: Annotated[
        bool, typer.Option("--stripped", help="Leave weights out, and refit them on load.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be compiled, and exit.")
    ] = False,
    architecture: Annotated[str, typer.Option(help="GPU to plan for, with --dry-run.")] = "sm_90",
    tensorrt: Annotated[str, typer.Option(help="TensorRT to plan for, with --dry-run.")] = "11.4.0",
) -> None:
    """Compile a bundle's graphs with TensorRT for this machine's GPU.

    Keeps what is there already; an interrupted run goes on where it stopped.
    """
    _quiet()
    from tessera_build.compile import compile_job, plan_jobs
    from tessera_build.reports import jobs_lines

    compiler: Compiler | None = None
    if not dry_run:
        compiler = _compiler()
        architecture, tensorrt = compiler.architecture, compiler.version
    jobs = plan_jobs(
        bundle,
        precision=precision.value,
        architecture=architecture,
        tensorrt=tensorrt,
        stripped=stripped,
    )
    console.say(f"{bundle}: {architecture}, TensorRT {tensorrt}")
    for line in jobs_lines(jobs):
        console.say(line)
    if compiler is None:
        return
    missing = [job for job in jobs if not job.done]
    for number, job in enumerate(missing, 1):
        with console.doing(f"compiling {job.key.graph}, {number} of {len(missing)} ..."):
            record = compile_job(job, compiler, bundle)
        console.say(
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


@app.command("train-demo")
def train_demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write the checkpoint to.")
    ] = DEMO_MODEL,
    work: Annotated[
        Path, typer.Option(help="Folder of checkpoints and sample sheets; training resumes there.")
    ] = Path("out/train-demo"),
    steps: Annotated[int, typer.Option(help="Training steps of the UNet.")] = 12_000,
    start: Annotated[
        Path | None, typer.Option(help="Go on from a checkpoint of the demo model.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    only_loras: Annotated[
        bool, typer.Option("--only-loras", help="Train its LoRAs on a checkpoint that is there.")
    ] = False,
    only_controlnets: Annotated[
        bool,
        typer.Option(
            "--only-controlnets", help="Train its ControlNets on a checkpoint that is there."
        ),
    ] = False,
) -> None:
    """Train the demo model, its LoRAs and its ControlNets; takes hours on a laptop."""
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
    console.say(f"{out}: {100 * score.fraction:.1f} % of attributes right on unseen prompts")
    for name, (right, asked) in score.right.items():
        console.say(f"  {name:<10} {right}/{asked}")


def _train_loras(out: Path, work: Path, *, seed: int) -> None:
    from tessera_build.demo.lora_training import JUDGED, train_loras

    found = train_loras(out, out.parent / "loras", work / "loras", seed=seed)
    for style, (without, having) in found.items():
        console.say(f"{style}: {having} of {JUDGED} pictures in its style, {without} without it")


def _train_controlnets(out: Path, work: Path, *, seed: int) -> None:
    from tessera_build.demo.controlnet_training import train_controlnets

    found = train_controlnets(out, out.parent / "controlnets", work / "controlnets", seed=seed)
    for name, (without, having) in found.items():
        console.say(f"{name}: {having}; without it {without}")
        for key, (right, asked) in having.score.right.items():
            console.say(f"  {key:<10} {right}/{asked}, {without.score.right[key][0]} without it")


def main() -> None:
    """Entry point of the console script: a fault that is not ours to fix is one sentence."""
    try:
        app()
    except TesseraError as error:
        Console(stderr=True).say(f"tessera-build: {error}", style="red")
        sys.exit(1)


def _build(
    source: str,
    out: Path,
    choices: Choices,
    addons: AddOns,
    *,
    force: bool,
    config: Path | None = None,
    revision: str | None = None,
) -> None:
    from tessera_build.addons import install_loras
    from tessera_build.bundle import build_bundle, is_current
    from tessera_build.checkpoint import find_checkpoint
    from tessera_build.complete import check_complete
    from tessera_build.quantised import refuse_quantised
    from tessera_build.reports import sampling_lines

    checkpoint = find_checkpoint(source, revision=revision, variant=choices.files)
    for read in filter(None, (checkpoint, choices.base, choices.vae)):
        refuse_quantised(read)
    addons.check()
    if not force and is_current(out, checkpoint, choices, addons, config):
        install_loras(out, addons.loras)
        console.say(f"{out} is up to date")
        return
    if not choices.base:
        check_complete(checkpoint, config)
    with console.bar() as bar:
        task = bar.add_task("loading")

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        manifest = build_bundle(
            checkpoint,
            out,
            choices=choices,
            progress=progress,
            config=config,
            addons=addons,
            say=console.say,
        )
    size = sum(entry.bytes for entry in manifest.files.values()) / 1e6
    console.say(
        f"{out}: {manifest.variant}, {manifest.precision}, {len(manifest.graphs)} graphs, "
        f"{size:.0f} MB, digest {manifest.digest[:12]}"
    )
    for line in sampling_lines(out, manifest):
        console.say(line)
    if decoder := manifest.linear_decoder:
        console.say(
            f"  previews: R2 {decoder.r2:.2f} on unseen pictures, "
            f"colours {decoder.rmse:.0f} of 255 off (RMS)"
        )


def _quiet() -> None:
    """Keep the libraries' own bars and hints off the terminal; their errors still show.

    Comes before anything that imports them: transformers prints hints while it is imported.
    """
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)

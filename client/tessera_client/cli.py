"""`tessera`: the command line of the client.

Exit codes: 0 done, 1 the server could not do it, 2 bad usage or input, 3 no server, 130 cancelled.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tessera.errors import Cancelled, InvalidInput, TesseraError, TimedOut, Unavailable, UnknownJob
from tessera_client.client import Client
from tessera_client.messages import GenerateOptions, JobStatus

app = typer.Typer(help="Talk to a Tessera server.", no_args_is_help=True, add_completion=False)
console = Console(stderr=True, highlight=False)
output = Console(highlight=False)

Url = Annotated[
    str,
    typer.Option("--url", "-u", envvar="TESSERA_URL", help="http://host:port or grpc://host:port."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for one picture.")]
LOCAL = "http://localhost:8000"


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Picture to write; -1, -2 ... is added with --n.")
    ] = Path("out.png"),
    negative_prompt: Annotated[
        str | None, typer.Option("--negative", help="What not to draw.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first picture; further ones count up.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="euler, ddim, unipc ...")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many pictures.")] = 1,
    url: Url = LOCAL,
    timeout: Timeout = 300.0,
    as_json: AsJson = False,
) -> None:
    """Text to image."""
    options = GenerateOptions(
        negative_prompt=negative_prompt,
        seed=seed,
        steps=steps,
        guidance=guidance,
        width=width,
        height=height,
        scheduler=scheduler,
    )
    try:
        with Client(url, timeout=timeout) as client:
            for number in range(n):
                path = out if n == 1 else out.with_stem(f"{out.stem}-{number + 1}")
                turn = options.copy()
                if seed is not None:
                    turn["seed"] = seed + number
                _generate_one(client, prompt, path, turn, as_json)
    except (TesseraError, KeyboardInterrupt) as error:
        _fail(error)


@app.command()
def jobs(
    job_id: Annotated[str, typer.Argument(help="The job's id (see `tessera generate --json`).")],
    cancel: Annotated[bool, typer.Option("--cancel", help="End the job.")] = False,
    url: Url = LOCAL,
    as_json: AsJson = False,
) -> None:
    """How far a job is; with --cancel, end it."""
    try:
        with Client(url) as client:
            status = client.cancel(job_id) if cancel else client.status(job_id)
    except TesseraError as error:
        _fail(error)
    if as_json:
        typer.echo(json.dumps(vars(status)))
    else:
        output.print(
            f"{status.job_id}: {status.phase}, step {status.step} of {status.total}, "
            f"{status.seconds:.1f} s",
            soft_wrap=True,
        )
        if status.cancelled and not status.ended:
            output.print("it ends at the next step")


@app.command()
def health(url: Url = LOCAL, as_json: AsJson = False) -> None:
    """Whether the server and its models are ready; exit code 3 if not."""
    try:
        with Client(url) as client:
            report = client.health()
    except TesseraError as error:
        _fail(error)
    if as_json:
        output.print_json(
            json.dumps({"ready": report.ready, "server": report.server, "models": report.models})
        )
    else:
        table = Table("what", "ready", box=None)
        for name, ready in {"server": report.server, **report.models}.items():
            table.add_row(name, "[green]yes[/]" if ready else "[red]no[/]")
        output.print(table)
    if not report.ready:
        raise typer.Exit(3)


def _generate_one(
    client: Client, prompt: str, path: Path, options: GenerateOptions, as_json: bool
) -> None:
    job_id = uuid.uuid4().hex
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("queued", total=options.get("steps"))

        def show(status: JobStatus) -> None:
            bar.update(task, description=status.phase, completed=status.step, total=status.total)

        result = client.generate(prompt, job_id=job_id, on_progress=show, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    result.image.save(path)
    if as_json:
        typer.echo(json.dumps({"file": str(path), **result.info.raw}))
    else:
        info = result.info
        output.print(
            f"{path}  seed {info.seed}, {info.steps} steps of {info.scheduler}, "
            f"{info.total_ms:.0f} ms",
            soft_wrap=True,
        )


def _fail(error: BaseException) -> NoReturn:
    """Say what went wrong and leave with its exit code."""
    if isinstance(error, KeyboardInterrupt | Cancelled):
        console.print("cancelled")
        raise typer.Exit(130)
    console.print(f"tessera: {error}", style="red", soft_wrap=True, markup=False)
    codes: list[tuple[type[TesseraError], int]] = [
        (InvalidInput, 2),
        (UnknownJob, 2),
        (Unavailable, 3),
        (TimedOut, 1),
    ]
    raise typer.Exit(next((code for kind, code in codes if isinstance(error, kind)), 1))


def main() -> None:
    """Entry point of the console script."""
    app()

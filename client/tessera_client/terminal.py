"""What the commands of `tessera` share: how they print, show progress and fail."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tessera.contract import JobStatus
from tessera.errors import Cancelled, InvalidInput, TimedOut, Unavailable, UnknownJob
from tessera_client.messages import Result

console = Console(stderr=True, highlight=False)
output = Console(highlight=False)

Url = Annotated[
    str,
    typer.Option("--url", "-u", envvar="TESSERA_URL", help="http://host:port or grpc://host:port."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for one picture.")]
NegativePrompt = Annotated[str | None, typer.Option("--negative", help="What not to draw.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; of an edit, at full strength.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale.")]
Scheduler = Annotated[str | None, typer.Option(help="euler, ddim, unipc ...")]
JobId = Annotated[
    str | None, typer.Option(help="Name of the job, for `tessera jobs`; else one is made up.")
]
LOCAL = "http://localhost:8000"


def with_progress(
    ask: Callable[[str, Callable[[JobStatus], None]], Result],
    steps: int | None,
    job_id: str | None,
) -> Result:
    """The answer of `ask(job id, what to call with news)`, with a bar until it comes; `steps` and
    the id if they are known.
    """
    job = job_id or uuid.uuid4().hex
    columns = (
        TextColumn(f"{job} {{task.description:<10}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("queued", total=steps)

        def show(status: JobStatus) -> None:
            bar.update(task, description=status.phase, completed=status.step, total=status.total)

        return ask(job, show)


def save(result: Result, path: Path, as_json: bool) -> None:
    """Write the picture and say what it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result.image.save(path)
    info = result.info
    if as_json:
        typer.echo(json.dumps({"file": str(path), **asdict(info)}))
        return
    ratio = (
        "" if info.mask_ratio is None else f", {info.mode}, {100 * info.mask_ratio:.1f} % edited"
    )
    output.print(
        f"{path}  seed {info.seed}, {info.steps} steps of {info.scheduler}{ratio}, "
        f"{info.total_ms:.0f} ms",
        soft_wrap=True,
    )


def fail(error: BaseException) -> NoReturn:
    """Say what went wrong and leave with its exit code."""
    if isinstance(error, KeyboardInterrupt | Cancelled):
        console.print("cancelled")
        raise typer.Exit(130)
    console.print(f"tessera: {error}", style="red", soft_wrap=True, markup=False)
    codes: list[tuple[type[Exception], int]] = [
        (TypeError, 2),
        (ValueError, 2),
        (OSError, 2),
        (InvalidInput, 2),
        (UnknownJob, 2),
        (Unavailable, 3),
        (TimedOut, 1),
    ]
    raise typer.Exit(next((code for kind, code in codes if isinstance(error, kind)), 1))

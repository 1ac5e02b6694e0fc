"""What the commands of `tessera` share: how they print, show progress and fail."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tessera import contract
from tessera.contract import JobStatus
from tessera.errors import Cancelled, InvalidInput, TimedOut, Unavailable, UnknownJob
from tessera.terminal.console import Console
from tessera_client.messages import Result

console = Console(stderr=True)
output = Console()

PICTURE = "Picture"
SAMPLING = "Sampling"
ADDONS = "LoRAs and ControlNets"
SERVER = "Server and output"
"""Panels of the help."""


def option(panel: str, *names: str, **details: Any) -> Any:
    """An option in a panel of the help."""
    return typer.Option(*names, rich_help_panel=panel, **details)


Url = Annotated[
    str,
    option(
        SERVER, "--url", "-u", envvar="TESSERA_URL", help="http://host:port or grpc://host:port."
    ),
]
AsJson = Annotated[bool, option(SERVER, "--json", help="Print one JSON object per line.")]
Timeout = Annotated[float, option(SERVER, metavar="SECONDS", help="Longest wait for one answer.")]
JobId = Annotated[
    str | None,
    option(SERVER, metavar="ID", help="Name the job, for `tessera jobs`; else it gets a name."),
]
NegativePrompt = Annotated[
    str | None, option(PICTURE, "--negative", metavar="PROMPT", help="Name what not to draw.")
]
Steps = Annotated[
    int | None, option(SAMPLING, help="Denoising steps; of an edit, at full strength.")
]
Guidance = Annotated[float | None, option(SAMPLING, help="Guidance scale.")]
Scheduler = Annotated[
    contract.Scheduler | None,
    option(SAMPLING, metavar="NAME", help=f"Sampler: {', '.join(contract.SCHEDULERS)}."),
]
LoraPolicy = Annotated[
    contract.LoraPolicy | None,
    option(
        ADDONS,
        help="Wait for LoRAs that are not at hand (exact), or begin without them (bounded).",
    ),
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
    with console.bar(transient=True) as bar:
        task = bar.add_task(f"{job} {'queued':<10}", total=steps)

        def show(status: JobStatus) -> None:
            words = f"{job} {status.phase:<10}"
            bar.update(task, description=words, completed=status.step, total=status.total)

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
    output.say(
        f"{path}  seed {info.seed}, {info.steps} steps of {info.scheduler}{ratio}, "
        f"{info.total_ms:.0f} ms"
    )


def fail(error: BaseException) -> NoReturn:
    """Say what went wrong and leave with its exit code."""
    if isinstance(error, KeyboardInterrupt | Cancelled):
        console.say("cancelled")
        raise typer.Exit(130)
    console.say(f"tessera: {error}", style="red")
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

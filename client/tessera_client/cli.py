"""`tessera`: the command line of the client.

Exit codes: 0 done, 1 the server could not do it, 2 bad usage or input, 3 no server, 130 cancelled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tessera.errors import TesseraError
from tessera.terminal.console import new_table
from tessera_client import cli_adapters, cli_edit, cli_templates
from tessera_client.cli_adapters import Loras, read_loras
from tessera_client.cli_controls import Controls, read_controls
from tessera_client.client import Client
from tessera_client.messages import GenerateOptions
from tessera_client.terminal import (
    LOCAL,
    PICTURE,
    SAMPLING,
    AsJson,
    Guidance,
    JobId,
    LoraPolicy,
    NegativePrompt,
    Scheduler,
    Steps,
    Timeout,
    Url,
    fail,
    option,
    output,
    save,
    with_progress,
)

app = typer.Typer(help="Talk to a Tessera server.", no_args_is_help=True, add_completion=False)
app.command()(cli_edit.edit)
app.add_typer(cli_templates.app, name="templates")
app.add_typer(cli_adapters.app, name="adapters")


Out = Annotated[
    Path,
    option(
        PICTURE,
        "--out",
        "-o",
        metavar="FILE",
        help="Write the picture to this file; with --n, -1, -2 ... is added to the name.",
    ),
]
Number = Annotated[int, option(PICTURE, "--n", min=1, help="How many pictures to make.")]
Side = Annotated[int | None, option(PICTURE, metavar="PIXELS", help="A multiple of 8.")]
Seed = Annotated[
    int | None, option(SAMPLING, help="Seed of the first picture; further ones count up.")
]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    out: Out = Path("out.png"),
    n: Number = 1,
    negative_prompt: NegativePrompt = None,
    width: Side = None,
    height: Side = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    scheduler: Scheduler = None,
    lora: Loras = None,
    lora_policy: LoraPolicy = None,
    control: Controls = None,
    job_id: JobId = None,
    url: Url = LOCAL,
    timeout: Timeout = 300.0,
    as_json: AsJson = False,
) -> None:
    """Make pictures of a prompt."""
    options = GenerateOptions(
        negative_prompt=negative_prompt,
        seed=seed,
        steps=steps,
        guidance=guidance,
        width=width,
        height=height,
        scheduler=scheduler,
        lora_policy=lora_policy,
    )
    try:
        options["loras"], options["controls"] = read_loras(lora), read_controls(control)
        with Client(url, timeout=timeout) as client:
            for number in range(n):
                path = out if n == 1 else out.with_stem(f"{out.stem}-{number + 1}")
                turn = options.copy()
                if seed is not None:
                    turn["seed"] = seed + number
                job = f"{job_id}-{number + 1}" if job_id and n > 1 else job_id
                _generate_one(client, prompt, path, turn, job, as_json)
    except (TesseraError, ValueError, OSError, KeyboardInterrupt) as error:
        fail(error)


@app.command()
def jobs(
    job_id: Annotated[str, typer.Argument(help="The job's id: --job-id, or what the bar shows.")],
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the job.")] = False,
    url: Url = LOCAL,
    as_json: AsJson = False,
) -> None:
    """Show how far a job is, or cancel it."""
    try:
        with Client(url) as client:
            status = client.cancel(job_id) if cancel else client.status(job_id)
    except TesseraError as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps(vars(status)))
    else:
        output.say(
            f"{status.job_id}: {status.phase}, step {status.step} of {status.total}, "
            f"{status.seconds:.1f} s"
        )
        if status.cancelled and not status.ended:
            output.say("it ends at the next step")


@app.command()
def health(url: Url = LOCAL, as_json: AsJson = False) -> None:
    """Ask whether the server and its public models are ready; exit with 3 if not."""
    try:
        with Client(url) as client:
            report = client.health()
    except TesseraError as error:
        fail(error)
    if as_json:
        output.print_json(
            json.dumps({"ready": report.ready, "server": report.server, "models": report.models})
        )
    else:
        table = new_table("what", "ready")
        for name, ready in {"server": report.server, **report.models}.items():
            table.add_row(name, Text("yes", "green") if ready else Text("no", "red"))
        output.print(table)
    if not report.ready:
        raise typer.Exit(3)


def _generate_one(
    client: Client,
    prompt: str,
    path: Path,
    options: GenerateOptions,
    job_id: str | None,
    as_json: bool,
) -> None:
    result = with_progress(
        lambda job, show: client.generate(prompt, job_id=job, on_progress=show, **options),
        options.get("steps"),
        job_id,
    )
    save(result, path, as_json)


def main() -> None:
    """Entry point of the console script."""
    app()

"""`tessera`: the command line of the client.

Exit codes: 0 done, 1 the server could not do it, 2 bad usage or input, 3 no server, 130 cancelled.
"""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.text import Text

from tessera.terminal.console import new_table
from tessera_client import cli_adapters, cli_edit, cli_templates
from tessera_client.cli_adapters import Loras, read_loras
from tessera_client.cli_batch import batch
from tessera_client.cli_compare import compare_folder
from tessera_client.cli_controls import Controls, read_controls
from tessera_client.cli_info import info
from tessera_client.cli_progress import PreviewFile, Screen, ShowPreview, one_bar, with_progress
from tessera_client.messages import ManyOptions
from tessera_client.orders import numbered, seeds_of
from tessera_client.results import Result
from tessera_client.terminal import (
    FAILURES,
    LOCAL,
    PICTURE,
    SAMPLING,
    Access,
    AsJson,
    ClipSkip,
    Guidance,
    JobId,
    LoraPolicy,
    NegativePrompt,
    Priority,
    Scheduler,
    Steps,
    Syntax,
    Timeout,
    Url,
    check_output,
    fail,
    numbered_file,
    open_client,
    option,
    output,
    read_headers,
    save,
    shown,
    tell,
    write,
)

app = typer.Typer(help="Talk to a Tessera server.", no_args_is_help=True, add_completion=False)
app.command()(cli_edit.edit)
app.command()(batch)
app.command("compare")(compare_folder)
app.command()(info)
app.add_typer(cli_templates.app, name="templates")
app.add_typer(cli_adapters.app, name="adapters")


Token = Annotated[
    str | None,
    typer.Option(
        envvar="TESSERA_TOKEN",
        show_envvar=True,
        metavar="TOKEN",
        help="Key of a gateway; better in the variable, which other users do not see.",
    ),
]
Headers = Annotated[
    list[str] | None,
    typer.Option("--header", metavar="'NAME: VALUE'", help="A header to send (repeatable)."),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        envvar="TESSERA_CA_FILE",
        metavar="FILE",
        help="Certificates (PEM) to trust instead of the system's, for https:// and grpcs://.",
    ),
]


@app.callback()
def access(token: Token = None, header: Headers = None, ca_file: CaFile = None) -> None:
    """Talk to a Tessera server."""
    try:
        headers = read_headers(header)
    except ValueError as error:
        fail(error)
    shown.update(Access(token=token, headers=headers, ca_file=ca_file))


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
Number = Annotated[
    int,
    option(
        PICTURE,
        "--n",
        min=1,
        help="How many pictures to make: at once, but with previews one after the other.",
    ),
]
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
    syntax: Syntax = None,
    clip_skip: ClipSkip = None,
    width: Side = None,
    height: Side = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    scheduler: Scheduler = None,
    lora: Loras = None,
    lora_policy: LoraPolicy = None,
    priority: Priority = None,
    control: Controls = None,
    preview: ShowPreview = False,
    preview_file: PreviewFile = None,
    job_id: JobId = None,
    url: Url = LOCAL,
    timeout: Timeout = 300.0,
    as_json: AsJson = False,
) -> None:
    """Make pictures of a prompt."""
    options = ManyOptions(
        negative_prompt=negative_prompt,
        prompt_syntax=syntax,
        clip_skip=clip_skip,
        steps=steps,
        guidance=guidance,
        width=width,
        height=height,
        scheduler=scheduler,
        lora_policy=lora_policy,
        priority=priority,
    )
    try:
        screen = Screen(preview, preview_file)
        check_output(out, as_json=as_json, several=n > 1)
        options["loras"], options["controls"] = read_loras(lora), read_controls(control)
        wanted = dict(numbered(job_id or uuid.uuid4().hex, seeds_of(n, seed)))
        with open_client(url, timeout) as client:
            if n > 1 and not screen.wanted:
                _at_once(partial(client.generate_many, prompt, **options), wanted, out, as_json)
                return
            for number, (job, each) in enumerate(wanted.items(), 1):
                draw = partial(client.generate, prompt, seed=each, **options)
                path = out if n == 1 else numbered_file(out, number)
                save(with_progress(draw, steps, job, screen), path, as_json)
    except FAILURES as error:
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
        with open_client(url) as client:
            status = client.cancel(job_id) if cancel else client.status(job_id)
    except FAILURES as error:
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
        with open_client(url) as client:
            report = client.health()
    except FAILURES as error:
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


def _at_once(
    draw: Callable[..., Iterator[Result]], wanted: Mapping[str, int], out: Path, as_json: bool
) -> None:
    """Draw pictures that share ticks; write each as soon as it is there, and tell of all."""
    first, _, _ = next(iter(wanted)).rpartition("-")
    seeds = list(wanted.values())
    done: list[tuple[Result, Path]] = []
    try:
        with (
            one_bar(first, len(wanted)) as show,
            closing(cast(Any, draw(seed=seeds, job_id=first, on_progress=show))) as results,
        ):
            for number, result in enumerate(results, 1):
                done.append((result, numbered_file(out, number)))
                write(*done[-1])
    finally:
        for each in done:
            tell(*each, as_json)


def main() -> None:
    """Entry point of the console script. SIGTERM cancels what is under way, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()

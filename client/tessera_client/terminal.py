"""What the commands of `tessera` share: how they print and fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypedDict

import typer

from tessera import contract
from tessera.contract.limits import PRIORITIES
from tessera.errors import (
    Cancelled,
    InvalidInput,
    TesseraError,
    TimedOut,
    Unavailable,
    UnknownJob,
)
from tessera.terminal.console import Console
from tessera_client.client import Client
from tessera_client.results import Result, format_of

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
        SERVER,
        "--url",
        "-u",
        envvar="TESSERA_URL",
        help="http(s)://host:port/prefix or grpc(s)://host:port.",
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
Syntax = Annotated[
    contract.PromptSyntax | None,
    option(PICTURE, "--syntax", help="Brackets weigh words (weighted), or are text (plain)."),
]
ClipSkip = Annotated[
    int | None,
    option(PICTURE, metavar="LAYERS", help="Skip so many of the text encoders' last layers."),
]
Steps = Annotated[
    int | None, option(SAMPLING, help="Denoising steps; of an edit, at full strength.")
]
Guidance = Annotated[float | None, option(SAMPLING, help="Guidance scale.")]
Scheduler = Annotated[
    contract.Scheduler | None,
    option(
        SAMPLING,
        metavar="NAME",
        help=f"Sampler: {contract.scheduler_list(contract.SCHEDULERS)}.",
    ),
]
LoraPolicy = Annotated[
    contract.LoraPolicy | None,
    option(
        ADDONS,
        help="Wait for LoRAs that are not at hand (exact), or begin without them (bounded).",
    ),
]
Priority = Annotated[
    int | None,
    option(SAMPLING, min=1, max=PRIORITIES, help="1 is drawn before 2 (the default) and 3."),
]
LOCAL = "http://localhost:8000"


STANDARD_OUTPUT = Path("-")


class Access(TypedDict, total=False):
    """What is shown to the server: keywords of `Client`."""

    token: str | None
    headers: dict[str, str]
    ca_file: Path | None


shown: Access = {}
"""What the options before the command say."""


def open_client(url: str, timeout: float = 300.0) -> Client:
    """A client with the options that stand before the command.

    Raises:
        TesseraError, TypeError, ValueError, ModuleNotFoundError: see `Client`.
    """
    return Client(url, timeout=timeout, **shown)


def read_headers(texts: Sequence[str] | None) -> dict[str, str]:
    """What `--header` stands for.

    Raises:
        ValueError: one is not of the form NAME: VALUE.
    """
    headers = {}
    for text in texts or ():
        name, colon, value = text.partition(":")
        if not colon:
            raise ValueError("--header has no colon; accepted: 'NAME: VALUE'")
        headers[name.strip()] = value.strip()
    return headers


def check_output(path: Path, *, as_json: bool = False, several: bool = False) -> None:
    """Whether a picture can be written to a file, before it is drawn.

    Raises:
        ValueError: the name says no known format, is a folder's, or standard output is taken.
    """
    if path == STANDARD_OUTPUT:
        if as_json or several:
            what = "--json" if as_json else "--n"
            raise ValueError(f"{what} and -o - exclude each other: standard output has one picture")
        return
    if path.is_dir():
        raise ValueError(f"--out is {str(path)!r}, which is a folder; accepted: a file's name")
    format_of(path)


def numbered_file(path: Path, number: int) -> Path:
    """The file of one of several pictures: `blue-1.png` for `blue.png`."""
    return path.with_stem(f"{path.stem}-{number}")


def save(result: Result, path: Path, as_json: bool) -> None:
    """Write the picture and say what it is."""
    write(result, path)
    tell(result, path, as_json)


def write(result: Result, path: Path) -> None:
    """Write the picture; to standard output as PNG if the path is `-`."""
    if path == STANDARD_OUTPUT:
        stdout = sys.stdout.buffer
        stdout.write(result.to_bytes())
        stdout.flush()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        result.save(path)


def tell(result: Result, path: Path, as_json: bool) -> None:
    """Say what a picture is that is in a file now."""
    info = result.info
    if info.prompt_tokens_dropped:
        console.say(
            f"tessera: the last {info.prompt_tokens_dropped} of the prompt's tokens had no effect: "
            "the text encoder takes no more",
            style="yellow",
        )
    if as_json:
        typer.echo(json.dumps({"file": str(path), **asdict(info)}))
        return
    ratio = (
        "" if info.mask_ratio is None else f", {info.mode}, {100 * info.mask_ratio:.1f} % edited"
    )
    (console if path == STANDARD_OUTPUT else output).say(
        f"{path}  seed {info.seed}, {info.steps} steps of {info.scheduler}{ratio}, "
        f"{info.total_ms:.0f} ms"
    )


FAILURES = (
    TesseraError,
    TypeError,
    ValueError,
    ModuleNotFoundError,
    OSError,
    KeyboardInterrupt,
)
"""What commands expect, and `fail` explains."""


def fail(error: BaseException) -> NoReturn:
    """Say what went wrong and leave with its exit code."""
    if isinstance(error, KeyboardInterrupt | Cancelled):
        console.say("cancelled")
        raise typer.Exit(130)
    console.say(f"tessera: {error}", style="red")
    codes: list[tuple[type[Exception], int]] = [
        (TypeError, 2),
        (ValueError, 2),
        (ModuleNotFoundError, 2),
        (OSError, 2),
        (InvalidInput, 2),
        (UnknownJob, 2),
        (Unavailable, 3),
        (TimedOut, 1),
    ]
    raise typer.Exit(next((code for kind, code in codes if isinstance(error, kind)), 1))

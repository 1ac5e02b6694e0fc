"""`tessera batch`: pictures of a file of requests, several at a time, resumable."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from tessera.errors import Cancelled, TesseraError, UnknownJob
from tessera_client.client import Client
from tessera_client.messages import EditOptions, GenerateOptions
from tessera_client.results import format_of
from tessera_client.terminal import FAILURES, LOCAL, Timeout, Url, console, fail, open_client

_EDIT = ("image", "mask", "template")
_OURS = ("prompt", "out", "image", "mask")
_FILES = ("image", "mask")


@dataclass(frozen=True)
class Line:
    """One request of the file.

    Attributes:
        number: of the line, from 1.
        prompt: of the picture.
        out: the file that is written.
        options: keywords of `Client.generate` or `Client.edit`.
        image: of an edit; `None` for a generation or a template.
        mask: of an edit.
        edits: whether it is an edit.
    """

    number: int
    prompt: str
    out: Path
    options: dict[str, Any]
    image: Path | None = None
    mask: Any = None
    edits: bool = False

    def draw(self, client: Client, job_id: str) -> None:
        """Have it drawn, and write it. The picture is not kept: there may be many lines.

        Raises:
            TesseraError, TypeError, ValueError, OSError: see `Client.edit`.
        """
        if self.edits:
            given: Any = {"job_id": job_id, **self.options}
            result = client.edit(self.image, self.mask, self.prompt, **given)
        else:
            result = client.generate(self.prompt, job_id=job_id, **self.options)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.out.with_name(f".{job_id}{self.out.suffix}")
        result.save(unfinished)
        os.replace(unfinished, self.out)


def batch(
    requests: Annotated[Path, typer.Argument(help="A file with one JSON object on each line.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where pictures go.")],
    at_once: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Pictures that are drawn at a time.")
    ] = 8,
    url: Url = LOCAL,
    timeout: Timeout = 300.0,
) -> None:
    """Make a picture of each line of a file; those that are there already are left out."""
    try:
        lines = read_lines(requests, out)
        left = [line for line in lines if not line.out.exists()]
        with open_client(url, timeout) as client:
            failed = _draw_all(client, left, len(lines), at_once)
    except FAILURES as error:
        fail(error)
    done = len(left) - failed
    there = f", {len(lines) - len(left)} were there" if len(left) < len(lines) else ""
    console.say(f"{out}: {done} drawn, {failed} failed{there}")
    raise typer.Exit(1 if failed else 0)


def read_lines(requests: Path, out: Path) -> list[Line]:
    """The requests of a file; blank lines are left out.

    Args:
        requests: the file. Paths in it are relative to its folder.
        out: folder of the pictures.

    Raises:
        ValueError: a line is no request, or two have one file's name; the sentence names it.
        OSError: the file cannot be read.
    """
    lines = list(_lines(requests, out))
    seen: dict[Path, int] = {}
    for line in lines:
        first = seen.setdefault(line.out, line.number)
        if first != line.number:
            raise ValueError(f"line {line.number}: out is that of line {first}")
    if not lines:
        raise ValueError(f"{requests} has no requests; accepted: one JSON object on each line")
    return lines


def _lines(requests: Path, out: Path) -> Iterator[Line]:
    for number, text in enumerate(requests.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is no JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"line {number} is no JSON object")
        try:
            yield _line(number, content, requests.parent, out)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None


def _line(number: int, content: Mapping[str, Any], folder: Path, out: Path) -> Line:
    edits = any(key in content for key in _EDIT)
    known = (EditOptions if edits else GenerateOptions).__annotations__
    for key in content:
        if key not in known and key not in _OURS:
            raise ValueError(f"{key!r} is not a key; accepted: {', '.join([*_OURS, *known])}")
    prompt, name = content.get("prompt"), content.get("out", f"{number:04d}.png")
    if not isinstance(prompt, str):
        raise ValueError(f"prompt is {prompt!r}; accepted: a text")
    if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"out is {name!r}; accepted: a file's name below the folder of --out")
    format_of(name)
    files = {key: content.get(key) for key in _FILES}
    found = {k: folder / v if isinstance(v, str) else v for k, v in files.items()}
    for key, path in found.items():
        if isinstance(path, Path) and not path.is_file():
            raise ValueError(f"{key} is {str(path)!r}, which is no file")
    options = {key: value for key, value in content.items() if key in known}
    for key, file in (("controls", "image"), ("regions", "mask")):
        if isinstance(options.get(key), list):
            options[key] = [_located(each, file, folder) for each in options[key]]
    return Line(number, prompt, out / name, options, **found, edits=edits)


def _located(settings: object, key: str, folder: Path) -> object:
    """Settings of a ControlNet or a region with the path of its file made relative to this
    process.
    """
    if isinstance(settings, dict) and isinstance(settings.get(key), str):
        return {**settings, key: folder / settings[key]}
    return settings


def _draw_all(client: Client, lines: list[Line], total: int, at_once: int) -> int:
    """Draw all; how many failed. Whoever interrupts it cancels those under way."""
    failed, jobs = 0, {line.number: uuid.uuid4().hex for line in lines}
    with Progress(console=console, transient=True) as bar, ThreadPoolExecutor(at_once) as pool:
        task = bar.add_task("drawing", total=total, completed=total - len(lines))
        drawn = {pool.submit(line.draw, client, jobs[line.number]): line for line in lines}
        try:
            for future in as_completed(drawn):
                failed += _told(future, drawn[future])
                bar.advance(task)
        except BaseException:
            _cancel(client, drawn, jobs)
            raise
    return failed


def _told(future: Future[None], line: Line) -> bool:
    """Whether it failed, which is said."""
    error = future.exception()
    if error is None:
        return False
    if not isinstance(error, FAILURES):
        raise error
    console.say(f"line {line.number}: {error}", style="red")
    return True


def _cancel(client: Client, drawn: Mapping[Future[None], Line], jobs: Mapping[int, str]) -> None:
    """End all: first those that have not begun, which would begin where another one ends."""
    under_way = [future for future in drawn if not future.cancel()]
    for future in under_way:
        if future.done():
            continue
        line = drawn[future]
        try:
            client.cancel(jobs[line.number])
        except (UnknownJob, Cancelled):
            continue  # it is on its way, or over
        except TesseraError as error:
            console.say(f"line {line.number} goes on: {error}")

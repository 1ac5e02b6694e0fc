"""`tessera compare`: sparse edits beside dense ones, on one's own pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.table import Table

from tessera.errors import TesseraError
from tessera.terminal.console import new_table
from tessera_client.cli_edit import MaskKind, Seed, Strength
from tessera_client.client import Client
from tessera_client.comparing import Compared, Pair, compare, pairs_in
from tessera_client.messages import EditOptions
from tessera_client.sheet import contact_sheet
from tessera_client.terminal import (
    FAILURES,
    LOCAL,
    PICTURE,
    SAMPLING,
    SERVER,
    AsJson,
    Guidance,
    NegativePrompt,
    Scheduler,
    Steps,
    Timeout,
    Url,
    console,
    fail,
    open_client,
    option,
    output,
)

SHEET, RESULTS = "sheet.png", "results.json"
_NUMBERS = ("masked", "SSIM", "PSNR", "dense", "sparse", "faster")


def compare_folder(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Pictures name.png with masks name.mask.png, and prompts name.txt if they differ.",
            exists=True,
            file_okay=False,
        ),
    ],
    out: Annotated[
        Path | None,
        option(
            SERVER, "--out", "-o", metavar="DIR", help="Where sheet and numbers go; DIR/compare."
        ),
    ] = None,
    prompt: Annotated[
        str | None, option(PICTURE, help="Prompt of pictures without a text of their own.")
    ] = None,
    negative_prompt: NegativePrompt = None,
    mask_kind: MaskKind = None,
    strength: Strength = None,
    seed: Seed = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    scheduler: Scheduler = None,
    repeats: Annotated[
        int, option(SAMPLING, min=1, max=100, help="Draw each way so often, for the times.")
    ] = 1,
    url: Url = LOCAL,
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Draw a folder's edits dense and sparse, and compare them: a sheet, and SSIM, PSNR, times."""
    given = locals()
    try:
        pairs = pairs_in(folder, prompt)
        known = [name for name in EditOptions.__annotations__ if name in given]
        options = cast(EditOptions, {name: given[name] for name in known})
        with open_client(url, timeout) as client:
            done = _all(client, pairs, options, repeats)
        if done:
            written = _write(done, out or folder / "compare")
            _tell(done, written, as_json)
    except FAILURES as error:
        fail(error)
    raise typer.Exit(1 if len(done) < len(pairs) else 0)


def _all(
    client: Client, pairs: Sequence[Pair], options: EditOptions, repeats: int
) -> list[Compared]:
    """Those that could be drawn; why others could not is said."""
    done = []
    with console.bar(transient=True) as bar:
        task = bar.add_task("comparing", total=len(pairs) * (1 + 2 * repeats))
        for number, pair in enumerate(pairs, 1):
            bar.update(task, description=pair.name)
            try:
                advance = partial(bar.advance, task)
                done.append(compare(client, pair, options, repeats=repeats, on_drawn=advance))
            except (TesseraError, TypeError, ValueError) as error:
                console.say(f"{pair.name}: {error}", style="red")
            bar.update(task, completed=number * (1 + 2 * repeats))
    return done


def _write(done: Sequence[Compared], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (each.pair.name, each.picture, each.mask, list(each.pictures.values())) for each in done
    ]
    contact_sheet(rows, ("dense", "sparse", "difference, times 4")).save(folder / SHEET)
    content = {"pairs": [each.report for each in done], "median": _medians(done)}
    (folder / RESULTS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


def _medians(done: Sequence[Compared]) -> dict[str, float]:
    return {
        "mask_ratio": round(statistics.median(each.ratio for each in done), 4),
        "ssim": round(statistics.median(each.ssim for each in done), 4),
        "psnr": round(statistics.median(each.psnr for each in done), 2),
        "dense_ms": round(statistics.median(each.median_ms("dense") for each in done), 1),
        "sparse_ms": round(statistics.median(each.median_ms("sparse") for each in done), 1),
    }


def _tell(done: Sequence[Compared], folder: Path, as_json: bool) -> None:
    if as_json:
        for each in done:
            typer.echo(json.dumps(each.report))
        return
    output.print(_table(done))
    output.say(f"{folder / SHEET}  {folder / RESULTS}")


def _table(done: Sequence[Compared]) -> Table:
    table = new_table("picture", *_NUMBERS, title="Inside the mask", numbers=_NUMBERS)
    for each in done:
        table.add_row(each.pair.name, *_cells(each.ratio, each.ssim, each.psnr, *_times(each)))
    if len(done) > 1:
        found = _medians(done)
        names = ("mask_ratio", "ssim", "psnr", "dense_ms", "sparse_ms")
        table.add_row("median", *_cells(*(found[name] for name in names)))
    return table


def _times(each: Compared) -> tuple[float, float]:
    return each.median_ms("dense"), each.median_ms("sparse")


def _cells(ratio: float, similar: float, decibels: float, dense: float, sparse: float) -> list[str]:
    return [
        f"{100 * ratio:.1f} %",
        f"{similar:.3f}",
        f"{decibels:.1f} dB",
        f"{dense:.0f} ms",
        f"{sparse:.0f} ms",
        f"{dense / max(sparse, 1e-6):.2f} x",
    ]

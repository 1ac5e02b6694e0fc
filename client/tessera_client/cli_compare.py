"""`tessera compare`: sparse edits beside dense ones, on one's own pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from tessera.errors import TesseraError
from tessera.terminal.console import new_table
from tessera_client.cli_adapters import Loras, read_loras
from tessera_client.cli_controls import Controls, read_controls
from tessera_client.cli_edit import Crop, Height, MaskKind, Quality, Seed, Strength, Width
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
    ClipSkip,
    Guidance,
    NegativePrompt,
    Scheduler,
    Steps,
    Syntax,
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
    syntax: Syntax = None,
    clip_skip: ClipSkip = None,
    mask_kind: MaskKind = None,
    padding_mask_crop: Crop = None,
    width: Width = None,
    height: Height = None,
    quality: Quality = None,
    strength: Strength = None,
    seed: Seed = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    scheduler: Scheduler = None,
    lora: Loras = None,
    control: Controls = None,
    repeats: Annotated[
        int, option(SAMPLING, min=1, max=100, help="Draw each way so often, for the times.")
    ] = 1,
    url: Url = LOCAL,
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Draw a folder's edits dense and sparse, and compare them: a sheet, and SSIM, PSNR, times.

    In the file of --control, {name} stands for the name of each picture.
    """
    given = locals()
    try:
        pairs = pairs_in(folder, prompt)
        options = _options(given)
        with open_client(url, timeout) as client:
            done = _all(client, pairs, options, control or (), repeats)
        if done:
            written = _write(done, out or folder / "compare")
            _tell(done, written, as_json)
    except FAILURES as error:
        fail(error)
    raise typer.Exit(1 if len(done) < len(pairs) else 0)


def _options(given: Mapping[str, Any]) -> EditOptions:
    """What the SDK's `edit` takes of the command's arguments, without ControlNets."""
    renamed = {**given, "prompt_syntax": given["syntax"], "loras": read_loras(given["lora"])}
    known = [name for name in EditOptions.__annotations__ if name in renamed]
    return cast(EditOptions, {name: renamed[name] for name in known})


def _all(
    client: Client,
    pairs: Sequence[Pair],
    options: EditOptions,
    controls: Sequence[str],
    repeats: int,
) -> list[Compared]:
    """Those that could be drawn; why others could not is said."""
    done = []
    with console.bar(transient=True) as bar:
        task = bar.add_task("comparing", total=len(pairs) * (1 + 2 * repeats))
        for number, pair in enumerate(pairs, 1):
            bar.update(task, description=pair.name)
            try:
                advance = partial(bar.advance, task)
                own = options.copy()
                named = [text.replace("{name}", pair.name) for text in controls]
                own["controls"] = read_controls(named)
                done.append(compare(client, pair, own, repeats=repeats, on_drawn=advance))
            except (TesseraError, TypeError, ValueError, OSError) as error:
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
    names = ("picture", *_NUMBERS, "recording")
    table = new_table(*names, title="Inside the mask", numbers=_NUMBERS)
    for each in done:
        cells = _cells(each.ratio, each.ssim, each.psnr, *_times(each))
        table.add_row(each.pair.name, *cells, each.recording)
    if len(done) > 1:
        found = _medians(done)
        medians = ("mask_ratio", "ssim", "psnr", "dense_ms", "sparse_ms")
        table.add_row("median", *_cells(*(found[name] for name in medians)), "")
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

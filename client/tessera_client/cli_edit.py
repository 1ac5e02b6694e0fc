"""`tessera edit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from tessera.errors import TesseraError
from tessera_client.cli_adapters import LoraPolicy, Loras, read_loras
from tessera_client.cli_controls import Controls, read_controls
from tessera_client.client import Client
from tessera_client.edits import Mask, Rectangle, mask_of
from tessera_client.messages import EditOptions
from tessera_client.pictures import read_picture
from tessera_client.sheet import before_and_after
from tessera_client.terminal import (
    LOCAL,
    AsJson,
    Guidance,
    JobId,
    NegativePrompt,
    Scheduler,
    Steps,
    Timeout,
    Url,
    console,
    fail,
    save,
    with_progress,
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Picture to write.")]
Sheet = Annotated[Path | None, typer.Option(help="Also write before, mask and after side by side.")]


def edit(
    image: Annotated[Path, typer.Argument(help="Picture to edit.", exists=True, dir_okay=False)],
    prompt: Annotated[str, typer.Argument(help="What it shall show.")],
    mask: Annotated[
        Path | None,
        typer.Option(help="Picture whose light part is edited.", exists=True, dir_okay=False),
    ] = None,
    rect: Annotated[
        str | None, typer.Option(help="Rectangle to edit instead of a mask: x,y,width,height.")
    ] = None,
    out: Out = Path("edited.png"),
    sheet: Sheet = None,
    strength: Annotated[
        float | None, typer.Option(help="Above 0 and up to 1; less stays closer to the picture.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="auto, sparse or dense.")] = None,
    negative_prompt: NegativePrompt = None,
    seed: Annotated[int | None, typer.Option(help="Seed.")] = None,
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
    """An image anew inside a mask: a file (--mask), a rectangle (--rect), or its transparent
    part.
    """
    options = EditOptions(
        strength=strength,
        mode=mode,
        negative_prompt=negative_prompt,
        seed=seed,
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        lora_policy=lora_policy,
    )
    try:
        options["loras"], options["controls"] = read_loras(lora), read_controls(control)
        picture = read_picture(image)
        where = mask_of(_mask(mask, rect), picture)
        with Client(url, timeout=timeout) as client:
            result = with_progress(
                lambda job, show: client.edit(
                    picture, where, prompt, job_id=job, on_progress=show, **options
                ),
                None,
                job_id,
            )
        save(result, out, as_json)
        if sheet:
            _save_sheet(before_and_after(picture, where, result.image, prompt), sheet)
    except (TesseraError, TypeError, ValueError, OSError, KeyboardInterrupt) as error:
        fail(error)


def _save_sheet(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    console.print(f"{path}  before and after", soft_wrap=True)


def _mask(file: Path | None, rect: str | None) -> Mask:
    """The mask that the options stand for; `None` is the image's transparent part.

    Raises:
        ValueError: both are given, or the rectangle is not four numbers.
    """
    if file and rect:
        raise ValueError("--mask and --rect exclude each other")
    if file:
        return read_picture(file)
    return _rectangle(rect) if rect else None


def _rectangle(text: str) -> Rectangle:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--rect is {text!r}; accepted: x,y,width,height in pixels") from None
    return x, y, width, height

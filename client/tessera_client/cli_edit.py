"""`tessera edit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from tessera import contract
from tessera.errors import TesseraError
from tessera_client.cli_adapters import Loras, read_loras
from tessera_client.cli_controls import Controls, read_controls
from tessera_client.client import Client
from tessera_client.edits import Mask, Rectangle, mask_of
from tessera_client.messages import EditOptions
from tessera_client.pictures import read_picture
from tessera_client.sheet import before_and_after
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
    console,
    fail,
    option,
    save,
    with_progress,
)

Out = Annotated[
    Path, option(PICTURE, "--out", "-o", metavar="FILE", help="Write the picture to this file.")
]
Sheet = Annotated[
    Path | None,
    option(PICTURE, metavar="FILE", help="Also write before, mask and after side by side."),
]
Strength = Annotated[
    float | None,
    option(SAMPLING, help="Above 0 and up to 1; less stays closer to the picture."),
]
Mode = Annotated[
    contract.Mode | None,
    option(
        SAMPLING,
        help="Compute active tokens only (sparse), all (dense), or what is faster (auto).",
    ),
]
MaskFile = Annotated[
    Path | None,
    option(
        PICTURE,
        metavar="FILE",
        help="Edit where this picture is light.",
        exists=True,
        dir_okay=False,
    ),
]
Rect = Annotated[
    str | None, option(PICTURE, metavar="X,Y,WIDTH,HEIGHT", help="Edit this rectangle.")
]
Seed = Annotated[int | None, option(SAMPLING, help="Seed of the noise.")]


def edit(
    image: Annotated[Path, typer.Argument(help="Picture to edit.", exists=True, dir_okay=False)],
    prompt: Annotated[str, typer.Argument(help="What the picture shall show.")],
    mask: MaskFile = None,
    rect: Rect = None,
    out: Out = Path("edited.png"),
    sheet: Sheet = None,
    strength: Strength = None,
    mode: Mode = None,
    negative_prompt: NegativePrompt = None,
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
    """Edit the masked part of an image: a file's light part (--mask), a rectangle (--rect), or the
    image's transparent part.
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
    console.say(f"{path}  before and after")


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

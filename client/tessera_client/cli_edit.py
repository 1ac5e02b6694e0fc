"""`tessera edit`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from PIL import Image

from tessera import contract
from tessera_client.cli_adapters import Loras, read_loras
from tessera_client.cli_controls import Controls, read_controls
from tessera_client.cli_progress import PreviewFile, Screen, ShowPreview, with_progress
from tessera_client.edits import Mask, Rectangle, Region, mask_of
from tessera_client.messages import EditOptions
from tessera_client.pictures import picture_of
from tessera_client.sheet import before_and_after, with_room
from tessera_client.terminal import (
    FAILURES,
    LOCAL,
    PICTURE,
    SAMPLING,
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
    console,
    fail,
    open_client,
    option,
    save,
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
MaskKind = Annotated[
    contract.MaskKind | None,
    option(PICTURE, help="Take light pixels as edited (hard), or 0 to 255 as strength (soft)."),
]
MaskFill = Annotated[
    contract.MaskFill | None,
    option(
        PICTURE,
        help="With --strength below 1, start the masked part from the picture (original), from the "
        "colours around it (blur) or from noise.",
    ),
]
Feather = Annotated[
    int | None,
    option(
        PICTURE,
        "--mask-feather",
        metavar="PIXELS",
        help="Fade the edit in within so many pixels inside the mask (default 4).",
    ),
]
MaskTone = Annotated[
    contract.MaskTone | None,
    option(
        PICTURE,
        help="Keep the colours near the mask's border as drawn, or shift them to those around it "
        "(matched).",
    ),
]
Crop = Annotated[
    int | None,
    option(
        PICTURE,
        "--padding-mask-crop",
        metavar="PIXELS",
        help="Draw only the mask and so many pixels around it, enlarged; then put it back.",
    ),
]
Width = Annotated[
    int | None,
    option(PICTURE, metavar="PIXELS", help="Width to enlarge to with --padding-mask-crop."),
]
Height = Annotated[
    int | None,
    option(PICTURE, metavar="PIXELS", help="Height to enlarge to with --padding-mask-crop."),
]
Extend = Annotated[
    str | None,
    option(
        PICTURE,
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        help="Draw so many pixels around the picture, too.",
    ),
]
RegionFiles = Annotated[
    list[str] | None,
    option(
        PICTURE,
        "--region",
        metavar="FILE=PROMPT",
        help="A further mask with a prompt of its own (repeatable).",
    ),
]
Quality = Annotated[
    contract.EditQuality | None,
    option(SAMPLING, help="Of a sparse edit: nearer to the dense one takes longer."),
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
Resize = Annotated[
    str | None,
    option(
        PICTURE,
        metavar="HOW",
        help="For pictures of sizes that the server does not draw: pad (default), crop or scale.",
    ),
]
Seed = Annotated[int | None, option(SAMPLING, help="Seed of the noise.")]


def edit(
    image: Annotated[Path, typer.Argument(help="Picture to edit.", exists=True, dir_okay=False)],
    prompt: Annotated[str, typer.Argument(help="What the picture shall show.")],
    mask: MaskFile = None,
    rect: Rect = None,
    mask_kind: MaskKind = None,
    mask_fill: MaskFill = None,
    mask_feather: Feather = None,
    mask_tone: MaskTone = None,
    region: RegionFiles = None,
    padding_mask_crop: Crop = None,
    width: Width = None,
    height: Height = None,
    extend: Extend = None,
    out: Out = Path("edited.png"),
    sheet: Sheet = None,
    resize: Resize = None,
    strength: Strength = None,
    mode: Mode = None,
    quality: Quality = None,
    negative_prompt: NegativePrompt = None,
    syntax: Syntax = None,
    clip_skip: ClipSkip = None,
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
    """Edit the masked part of an image: a file's light part (--mask), a rectangle (--rect), or the
    image's transparent part; or all of it (--strength), or room around it (--extend).
    """
    given = locals()
    try:
        options = _options(given)
        screen = Screen(preview, preview_file)
        check_output(out, as_json=as_json)
        options["loras"], options["controls"] = read_loras(lora), read_controls(control)
        picture = picture_of("image", image)
        where = mask_of(_mask(mask, rect), picture, options)
        with open_client(url, timeout) as client:
            draw = partial(client.edit, picture, where, prompt, **options)
            result = with_progress(draw, None, job_id, screen)
        save(result, out, as_json)
        if sheet:
            before, marked = with_room(picture, where, options.get("extend"))
            _save_sheet(before_and_after(before, marked, result.image, prompt), sheet)
    except FAILURES as error:
        fail(error)


def _options(given: Mapping[str, Any]) -> EditOptions:
    """What the SDK's `edit` takes of the command's arguments by name."""
    renamed = {"prompt_syntax": given["syntax"], **given}
    known = [name for name in EditOptions.__annotations__ if name in renamed]
    options = cast(EditOptions, {name: renamed[name] for name in known})
    if given["extend"] is not None:
        options["extend"] = _numbers("--extend", given["extend"], "left,top,right,bottom")
    if given["region"]:
        options["regions"] = [_region(text) for text in given["region"]]
    return options


def _region(text: str) -> Region:
    file, found, prompt = text.partition("=")
    if not (file and found and prompt):
        raise ValueError(f"--region is {text!r}; accepted: FILE=PROMPT")
    return Region(Path(file), prompt)


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
        return file
    return _numbers("--rect", rect, "x,y,width,height") if rect else None


def _numbers(option: str, text: str, names: str) -> Rectangle:
    try:
        first, second, third, fourth = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} is {text!r}; accepted: {names} in pixels") from None
    return first, second, third, fourth

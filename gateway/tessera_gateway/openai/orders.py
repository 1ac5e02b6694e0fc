"""Orders: what a request asks for, checked, with its pictures decoded."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tessera.contract import SIZE_STEP
from tessera.types import Array
from tessera_client import Control, Lora, Region, ServedBundle
from tessera_client.edits import transparent_of
from tessera_client.messages import EditOptions
from tessera_gateway.drawing import Drawing, numbered
from tessera_gateway.errors import ApiError, invalid, unfit
from tessera_gateway.openai.quality import named, steps_of
from tessera_gateway.openai.reading import Sent, SentEdit
from tessera_gateway.openai.schemas import (
    ControlField,
    EditExtra,
    Extra,
    PictureFields,
)
from tessera_gateway.pictures import Format, decode, decode_url

STRENGTH = {"low": 0.8, "high": 0.5}
"""Of an edit without a mask, by `input_fidelity`: 0.8 is the usual one of image-to-image."""
OF_EDITS: tuple[str, ...] = ("strength", "mode", "template", "mask_kind", "mask_fill")
OF_EDITS += ("mask_feather", "mask_tone", "padding_mask_crop", "width", "height", "extend")
"""Options of edits in `tessera`."""
WHOLE = 100
"""`output_compression` that loses nothing."""


@dataclass(frozen=True)
class Order:
    """What a request asks for.

    Attributes:
        drawings: one for each picture.
        size: (width, height) of the pictures, in pixels; `None` of a template that is edited
            without a mask: only the server knows it.
        kind: what the names of its events begin with.
        form, compression: of the pictures' files.
        partials: how many previews of each picture a stream shall have.
        quality: as answers name it.
        as_url: whether the answer has URLs instead of pictures.
    """

    drawings: list[Drawing]
    size: tuple[int, int] | None
    kind: str
    form: Format
    compression: int
    partials: int
    quality: str
    as_url: bool


def generation(fields: PictureFields, extra: Extra, bundle: ServedBundle, max_pixels: int) -> Order:
    """The order of a generation; work for a thread, since it decodes pictures.

    Raises:
        ApiError: a field is not accepted.
    """
    size = _size(fields.size)
    defaults = bundle.defaults
    width, height = size or (int(defaults["width"]), int(defaults["height"]))
    options = _options(fields, extra, bundle, max_pixels)
    options["width"], options["height"] = width, height
    drawing = Drawing(fields.prompt, extra.job_id or uuid.uuid4().hex, options)
    return _order(fields, drawing, (width, height), "image_generation")


def edit(sent: SentEdit, bundle: ServedBundle, max_pixels: int) -> Order:
    """The order of an edit; work for a thread, since it decodes pictures.

    Raises:
        ApiError: a field is not accepted.
    """
    fields, extra = sent.fields, sent.fields.tessera
    options = _options(fields, extra, bundle, max_pixels)
    picture = _picture(sent, extra, max_pixels)
    mask = _mask(sent, extra, picture, max_pixels)
    if mask is None and not extra.extend:  # all of it, from the picture itself
        options["strength"] = extra.strength or STRENGTH[fields.input_fidelity or "low"]
    if mask is None and picture is not None:
        inside = 0 if extra.extend else 255
        mask = np.full((picture.height, picture.width), inside, np.uint8)
    size = _size_of_edit(fields, extra, picture, mask)
    _check_crop(extra, bundle)
    if extra.regions:
        options["regions"] = _regions(extra, mask, max_pixels)
    image = None if picture is None else np.asarray(picture.convert("RGB"))
    job_id = extra.job_id or uuid.uuid4().hex
    drawing = Drawing(fields.prompt, job_id, options, image, mask)
    return _order(fields, drawing, size, "image_edit")


def _size_of_edit(
    fields: PictureFields, extra: EditExtra, picture: Image.Image | None, mask: Array | None
) -> tuple[int, int] | None:
    """(width, height) of the answer; `None` of a template without a mask.

    Raises:
        ApiError: mask or size are not the picture's.
    """
    asked = _size(fields.size)
    if mask is None:
        if asked is not None:
            raise invalid("size", fields.size, "auto, since tessera.template has a size of its own")
        return None
    height, width = mask.shape
    if picture is not None and picture.size != (width, height):
        problem = f"has {width} x {height} pixels"
        raise unfit("mask", problem, f"the image's {picture.width} x {picture.height}")
    left, top, right, bottom = extra.extend or (0, 0, 0, 0)
    size = width + left + right, height + top + bottom
    if asked not in (None, size):
        raise invalid("size", fields.size, f"auto, or the image's {size[0]}x{size[1]}")
    return size


def _check_crop(extra: EditExtra, bundle: ServedBundle) -> None:
    """See whether a crop can be enlarged to the size that is asked for.

    Raises:
        ApiError: it cannot, or there is no crop.
    """
    low, high = bundle.min_size, bundle.max_size
    for name, side in (("width", extra.width), ("height", extra.height)):
        if side is not None and extra.padding_mask_crop is None:
            raise invalid(f"tessera.{name}", side, "nothing without tessera.padding_mask_crop")
        if side is not None and (not low <= side <= high or side % SIZE_STEP):
            accepted = f"a multiple of {SIZE_STEP} from {low} to {high}"
            raise invalid(f"tessera.{name}", side, accepted)


def check_model(name: str | None, bundle: ServedBundle) -> None:
    """See whether a request's model is the one that is served.

    Raises:
        ApiError: 404, as OpenAI does.
    """
    if name is not None and name != bundle.name:
        message = f"model is {name[:80]!r}; accepted: {bundle.name}"
        raise ApiError(404, message, "model_not_found", param="model")


def _order(
    fields: PictureFields, drawing: Drawing, size: tuple[int, int] | None, kind: str
) -> Order:
    form, compression = fields.output_format or Format.PNG, fields.output_compression
    if fields.background == "transparent":
        raise invalid("background", "transparent", "opaque, auto")
    if form is Format.PNG and compression not in (None, WHOLE):
        raise invalid("output_compression", compression, "100 with output_format png")
    if fields.partial_images and not fields.stream:
        raise invalid("partial_images", fields.partial_images, "0 without stream")
    if fields.response_format == "url" and fields.stream:
        raise invalid("response_format", "url", "b64_json with stream")
    return Order(
        numbered(drawing, fields.n or 1),
        size,
        kind=kind,
        form=form,
        compression=WHOLE if compression is None else compression,
        partials=fields.partial_images or 0,
        quality=named(fields.quality),
        as_url=fields.response_format == "url",
    )


def _size(size: str | None) -> tuple[int, int] | None:
    """(width, height); `None` for the usual size."""
    if size in (None, "auto"):
        return None
    width, height = size.split("x")
    return int(width), int(height)


def _options(
    fields: PictureFields, extra: Extra, bundle: ServedBundle, max_pixels: int
) -> EditOptions:
    steps = extra.steps or steps_of(fields.quality, extra.scheduler, bundle)
    given: dict[str, Any] = {
        "steps": steps,
        "loras": [Lora(lora.name, lora.weight, lora.text_weight) for lora in extra.loras],
        "controls": [
            _control(number, control, max_pixels) for number, control in enumerate(extra.controls)
        ],
    }
    names: tuple[str, ...] = ("seed", "guidance", "scheduler", "negative_prompt")
    names += ("prompt_syntax", "clip_skip", "lora_policy")
    names += OF_EDITS if isinstance(extra, EditExtra) else ()
    given |= {name: getattr(extra, name) for name in names}
    given["quality"] = extra.edit_quality if isinstance(extra, EditExtra) else None
    return EditOptions(**{k: v for k, v in given.items() if v not in (None, [])})  # type: ignore[typeddict-item]


def _regions(extra: EditExtra, mask: Array | None, max_pixels: int) -> list[Region]:
    """Regions, of the mask's size; of a template without a mask, of the first one's."""
    found: list[Region] = []
    for number, region in enumerate(extra.regions):
        param = f"tessera.regions[{number}].mask_image"
        white = np.asarray(decode_url(region.mask_image, param, max_pixels).convert("L"))
        mask = white if mask is None else mask
        if white.shape != mask.shape:
            problem = f"has {white.shape[1]} x {white.shape[0]} pixels"
            raise unfit(param, problem, f"{mask.shape[1]} x {mask.shape[0]}")
        found.append(Region(white, region.prompt))
    return found


def _control(number: int, control: ControlField, max_pixels: int) -> Control:
    picture = decode_url(control.image, f"tessera.controls[{number}].image", max_pixels)
    settings = control.model_dump(exclude={"image"}, exclude_none=True)
    return Control(image=np.asarray(picture.convert("RGB")), **settings)


def _decoded(sent: Sent, param: str, max_pixels: int) -> Image.Image:
    if isinstance(sent, bytes):
        return decode(sent, param, max_pixels)
    return decode_url(sent, param, max_pixels)


def _picture(sent: SentEdit, extra: EditExtra, max_pixels: int) -> Image.Image | None:
    count = len(sent.images)
    if extra.template is not None and not count:
        return None
    if count != 1 or extra.template is not None:
        problem = "is missing" if not count else f"is there {count} times"
        raise unfit("image", problem, "one image, or tessera.template")
    return _decoded(sent.images[0], "image", max_pixels)


def _mask(
    sent: SentEdit, extra: EditExtra, picture: Image.Image | None, max_pixels: int
) -> Array | None:
    """(h, w) of uint8, 255 where to edit; `None` if nothing says where."""
    if extra.mask_image is not None:
        if sent.mask is not None:
            raise unfit("tessera.mask_image", "is there beside mask", "one of the two")
        white = decode_url(extra.mask_image, "tessera.mask_image", max_pixels)
        return np.asarray(white.convert("L"))
    if sent.mask is not None:
        mask = _decoded(sent.mask, "mask", max_pixels)
        if not mask.has_transparency_data:
            accepted = "a PNG that is transparent where to edit; white for edit: tessera.mask_image"
            raise unfit("mask", "has no transparency", accepted)
        return 255 - np.asarray(mask.convert("RGBA"))[..., 3]
    return None if picture is None else transparent_of(picture, extra.mask_kind)

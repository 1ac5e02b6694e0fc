"""What becomes of an edit before `encode` sees it, and after `decode`: pictures of any size, crops
around the mask (PADDING_MASK_CROP), room around the picture (EXTEND), and edits without a mask.

Everything behind takes a picture of an accepted size and a mask of that size. The `edit` model does
this in the process that the edit has for itself, so others do not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera import contract
from tessera.contract.limits import FEATHER, MAX_EDIT_SIDE
from tessera.errors import InvalidInput
from tessera.manifest import Limits, Manifest
from tessera.requests.fields import Inputs, pixels_of, scalar_of, text_of
from tessera.requests.frames import (
    Frame,
    Sides,
    Size,
    cropped_frame,
    extended,
    filled_frame,
    working_size,
)
from tessera.requests.masks import (
    check_mask_size,
    editing,
    mask_of_kind,
    read_feather,
    read_mask_kind,
    read_region_masks,
)
from tessera.types import Array

FindTemplate = Callable[[str], Array]
CheckMemory = Callable[[int], None]
"""Raises `Unavailable` if there is no room for so many bytes."""

GEOMETRY = ("PADDING_MASK_CROP", "EXTEND")
"""Inputs that are dealt with here; `encode` does not know them."""
PASTED = ("MASK_KIND", "REGION_MASKS")
"""Inputs with which an edit is pasted through another mask than MASK."""
_PIXEL_BYTES = 3 + 3 + 3 + 1
"""Of a pixel of a picture: itself, the drawing at its size, the answer, and where it is edited."""


@dataclass(frozen=True)
class Framed:
    """An edit as the models behind take it.

    Attributes:
        inputs: those that replace the request's, with their batch dimension.
        dropped: names of the request's inputs that are not handed on.
        edited: (h, w) of UINT8, not 0 where what is drawn may change.
        frame: how the drawing is put back; `None` if it is the answer.
        picture: (h, w, 3) that it is put back into.
        mask: (h, w) of that picture, not 0 where it may change.
        held: bytes of host memory that this takes until the edit is answered.
        feather: drawn pixels inside the mask within which the edit fades in.
    """

    inputs: dict[str, Array]
    dropped: tuple[str, ...]
    edited: Array
    frame: Frame | None = None
    picture: Array | None = None
    mask: Array | None = None
    held: int = 0
    feather: int = FEATHER

    def answer(self, drawing: Array) -> Array:
        """The picture of the answer, of what `decode` has made."""
        if self.frame is None or self.mask is None:
            return drawing
        if self.picture is None:  # a template's, which only had to be filled up
            return drawing[: self.mask.shape[0], : self.mask.shape[1]]
        return self.frame.put_back(drawing, self.picture, self.mask, self.feather)

    @property
    def report(self) -> dict[str, Any] | None:
        """As INFO has it."""
        if self.frame is None:
            return None
        return {"box": list(self.frame.box), "scaled": list(self.frame.scaled)}


def framed(
    inputs: Inputs,
    manifest: Manifest,
    find_template: FindTemplate,
    check_memory: CheckMemory = lambda held: None,
) -> Framed:
    """An edit's inputs as the models behind take them. Memory is checked before there is any larger
    picture.

    Raises:
        InvalidInput: the first field whose value is not accepted.
        Unavailable: by `check_memory`.
    """
    soft = read_mask_kind(inputs) == contract.MaskKind.SOFT
    padding, sides = _padding(inputs), _sides(inputs)
    picture = _picture(
        inputs, find_template, manifest.limits, needed=padding is not None or any(sides)
    )
    if picture is not None:
        _check_size(inputs, picture, sides, manifest.limits, cropped=padding is not None)
    held = _held(inputs, picture, sides)
    check_memory(held)
    mask = _mask(inputs, picture, find_template, outside=any(sides))
    like = mask if picture is None else picture
    masks = np.concatenate([mask[None], read_region_masks(inputs, like)])
    if picture is not None and any(sides):
        picture, masks = extended(picture, masks, sides)
    kind = read_mask_kind(inputs)
    mask_of_kind(masks[0], kind)
    edited = np.where(editing(masks, kind).any(0), np.uint8(255), np.uint8(0))
    size = (edited.shape[1], edited.shape[0])
    frame = _frame(inputs, edited, size, padding, manifest.limits)
    if frame is None:
        return Framed(
            _named(masks) | ({} if picture is None else {"IMAGE": picture[None]}),
            _dropped(inputs, replaced=picture is not None),
            edited,
            held=held,
        )
    drawn = np.stack([frame.masked(each, soft=soft) for each in masks])
    given = _named(drawn) | _controls(inputs, frame, size)
    if picture is not None:
        given["IMAGE"] = frame.shown(picture)[None]
    dropped = (*_dropped(inputs, replaced=picture is not None), "WIDTH", "HEIGHT")
    inside = np.where(editing(drawn, kind).any(0), np.uint8(255), np.uint8(0))
    feather = read_feather(inputs)
    return Framed(given, dropped, inside, frame, picture, edited, held, feather)


def _held(inputs: Inputs, picture: Array | None, sides: Sides) -> int:
    """Bytes of host memory that the inputs and what is made of them take, at their own size."""
    mask = inputs["MASK"].shape[1:3] if "MASK" in inputs else (0, 0)
    height, width = mask if picture is None else picture.shape[:2]
    left, top, right, bottom = sides
    pixels = (height + top + bottom) * (width + left + right)
    return sum(array.nbytes for array in inputs.values()) + _PIXEL_BYTES * pixels


def _named(masks: Array) -> dict[str, Array]:
    """Masks (n, h, w) as inputs: the first is MASK."""
    return {"MASK": masks[:1]} | ({"REGION_MASKS": masks[None, 1:]} if len(masks) > 1 else {})


def needs_framing(inputs: Inputs, limits: Limits) -> bool:
    """Whether an edit's inputs are not what the models behind take, or its mask is not pasted as it
    is.
    """
    if "MASK" not in inputs or any(name in inputs for name in (*GEOMETRY, *PASTED)):
        return True
    sizes = [inputs[name].shape[1:3] for name in ("IMAGE", "MASK") if name in inputs]
    low, high, step = limits.min_size, limits.max_size, contract.SIZE_STEP
    return any(not low <= side <= high or side % step for size in sizes for side in size)


def filled_up(inputs: Inputs, limits: Limits) -> Inputs:
    """Inputs whose IMAGE is as it is drawn: of an accepted size by reflection, if it is not too
    large. So are control images of its size.
    """
    height, width = inputs["IMAGE"].shape[1:3] if "IMAGE" in inputs else (0, 0)
    if not (width and height) or max(width, height) > limits.max_size:
        return inputs
    frame = filled_frame((width, height), limits.min_size)
    controls = _controls(inputs, frame, (width, height))
    return {**inputs, **controls, "IMAGE": frame.shown(inputs["IMAGE"][0])[None]}


def _picture(
    inputs: Inputs, find_template: FindTemplate, limits: Limits, *, needed: bool
) -> Array | None:
    """The picture; `None` of a template whose pixels are not needed here.

    A template is filled up. If MASK has a size that is filled up to the template's, the picture was
    of that size.
    """
    given = [name for name in ("IMAGE", "TEMPLATE") if name in inputs]
    if len(given) != 1:
        problem = "is given as well as TEMPLATE" if given else "is missing, and so is TEMPLATE"
        raise InvalidInput.described("IMAGE", problem, "one of the two, IMAGE or TEMPLATE")
    if given == ["IMAGE"]:
        return inputs["IMAGE"][0]
    if not needed:
        return None
    picture = find_template(text_of(inputs, "TEMPLATE", "", 100))
    height, width = inputs["MASK"].shape[1:3] if "MASK" in inputs else (0, 0)
    if height and width:
        drawn = filled_frame((width, height), limits.min_size).drawn
        if drawn == (picture.shape[1], picture.shape[0]):
            return picture[:height, :width]
    return picture


def _mask(
    inputs: Inputs, picture: Array | None, find_template: FindTemplate, *, outside: bool
) -> Array:
    """MASK (h, w), or what an edit without one may change: all, or only the room around."""
    if "MASK" in inputs:
        mask = inputs["MASK"][0]
        if picture is not None:
            check_mask_size(mask, picture)
        return mask
    if not outside and "STRENGTH" not in inputs:
        accepted = "an array (h, w) of UINT8, or STRENGTH to edit the whole picture"
        raise InvalidInput.described("MASK", "is missing", accepted)
    if picture is None:
        picture = find_template(text_of(inputs, "TEMPLATE", "", 100))
    return np.full(picture.shape[:2], 0 if outside else 255, np.uint8)


def _frame(
    inputs: Inputs, edited: Array, size: Size, padding: int | None, limits: Limits
) -> Frame | None:
    """What is drawn of a picture; `None` for all of it as it is."""
    if padding is not None:
        working = working_size(size, limits.min_size, limits.max_size)
        width, height = (
            _working_side(inputs, name, side, limits)
            for name, side in zip(("WIDTH", "HEIGHT"), working, strict=True)
        )
        return cropped_frame(edited, padding, (width, height))
    frame = filled_frame(size, limits.min_size)
    if frame.drawn == size:
        return None
    for name, side in zip(("WIDTH", "HEIGHT"), size, strict=True):
        if name in inputs and int(scalar_of(inputs[name])) != side:
            accepted = f"the image's own, {side}, or nothing"
            raise InvalidInput(name, int(scalar_of(inputs[name])), accepted)
    return frame


def _working_side(inputs: Inputs, name: str, usual: int, limits: Limits) -> int:
    side = int(scalar_of(inputs[name])) if name in inputs else usual
    if not limits.min_size <= side <= limits.max_size or side % contract.SIZE_STEP:
        low, high = limits.min_size, limits.max_size
        accepted = f"a multiple of {contract.SIZE_STEP} from {low} to {high}"
        raise InvalidInput(name, side, accepted)
    return side


def _dropped(inputs: Inputs, *, replaced: bool) -> tuple[str, ...]:
    """Inputs that the models behind do not get: what is done, and what a new picture replaces."""
    names = (*GEOMETRY, *(["TEMPLATE"] if replaced else []))
    return tuple(name for name in names if name in inputs)


def _controls(inputs: Inputs, frame: Frame, size: Size) -> dict[str, Array]:
    """The images of ControlNets that have the picture's size, as they are drawn."""
    images = inputs.get("CONTROL_IMAGES")
    if images is None or images.shape[2:4] != size[::-1] or not images.size:
        return {}
    return {"CONTROL_IMAGES": np.stack([frame.shown(image) for image in images[0]])[None]}


def _check_size(
    inputs: Inputs, picture: Array, sides: Sides, limits: Limits, *, cropped: bool
) -> None:
    """The size of a picture with the room around it, before there is any."""
    name = "IMAGE" if "IMAGE" in inputs else "TEMPLATE"
    most = MAX_EDIT_SIDE if cropped else limits.max_size
    accepted = f"sides of 1 to {most} pixels"
    if not cropped:
        accepted += ", or PADDING_MASK_CROP, with which only a part is drawn"
    left, top, right, bottom = sides
    height, width = picture.shape[:2]
    larger = (width + left + right, height + top + bottom)
    if not (width and height) or max(larger) > most:
        problem = f"has {pixels_of(picture)}"
        if any(sides):
            problem += f", with EXTEND {larger[0]} x {larger[1]}"
        raise InvalidInput.described(name, problem, accepted)


def _padding(inputs: Inputs) -> int | None:
    if "PADDING_MASK_CROP" not in inputs:
        return None
    padding = int(scalar_of(inputs["PADDING_MASK_CROP"]))
    if not 0 <= padding <= MAX_EDIT_SIDE:
        accepted = f"pixels around the mask, from 0 to {MAX_EDIT_SIDE}"
        raise InvalidInput("PADDING_MASK_CROP", padding, accepted)
    return padding


def _sides(inputs: Inputs) -> Sides:
    if "EXTEND" not in inputs:
        return 0, 0, 0, 0
    sides = [int(side) for side in inputs["EXTEND"].reshape(-1)]
    most = MAX_EDIT_SIDE
    if len(sides) != 4 or not all(0 <= side <= most for side in sides) or not any(sides):
        accepted = f"pixels at the left, top, right and bottom, from 0 to {most}, and one above 0"
        raise InvalidInput("EXTEND", ", ".join(map(str, sides)), accepted)
    return sides[0], sides[1], sides[2], sides[3]

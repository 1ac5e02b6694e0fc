"""Checks which ControlNets a request names, their settings, and the images that come with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tessera import contract
from tessera.contract.limits import MAX_CONTROL_PIXELS
from tessera.errors import InvalidInput, unknown_name
from tessera.manifest import Manifest
from tessera.plan import ControlUse
from tessera.requests.edit import template_id
from tessera.requests.elements import elements_of
from tessera.requests.fields import Inputs, pixels_of
from tessera.requests.preprocess import Preparation
from tessera.types import Array


def _one_of(names: tuple[str, ...]) -> Any:
    """A text out of a list, by default its first; others are refused by `_preparation`."""
    return Field(default=names[0], json_schema_extra={"enum": list(names)})


class ControlElement(BaseModel):
    """One element of CONTROLS; see `ControlUse` and `Preparation`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    scale: float = Field(
        default=1.0,
        ge=-contract.MAX_CONTROL_SCALE,
        le=contract.MAX_CONTROL_SCALE,
        allow_inf_nan=False,
    )
    start: float = Field(default=0.0, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)
    preprocess: str = _one_of(contract.PREPROCESSORS)
    resize: str = _one_of(contract.RESIZES)
    low: float | None = Field(default=None, ge=0, le=contract.MAX_CANNY)
    high: float | None = Field(default=None, ge=0, le=contract.MAX_CANNY)
    mode: int | str | None = None
    guess_mode: bool = False


@dataclass(frozen=True)
class Control:
    """A ControlNet that a request asks for, its image (h, w, 3) of UINT8 as it was sent, and what
    shall be done to that.
    """

    use: ControlUse
    image: Array
    preparation: Preparation


def read_controls(
    inputs: Inputs, manifest: Manifest, width: int, height: int, *, masked: bool = False
) -> tuple[Control, ...]:
    """CONTROLS and CONTROL_IMAGES of a request for a picture of that size.

    Args:
        inputs: of the request.
        manifest: of the bundle.
        width: of the picture.
        height: of the picture.
        masked: whether the request is an edit, which has a mask.

    Raises:
        InvalidInput: the first field whose value is not accepted.
    """
    choices = elements_of(inputs, "CONTROLS", ControlElement, contract.MAX_CONTROLS)
    fields = [f"CONTROLS[{index}]" for index in range(len(choices))]
    uses = [_use(*of, manifest) for of in zip(fields, choices, strict=True)]
    preparations = [_preparation(*of) for of in zip(fields, choices, strict=True)]
    images = _images(inputs, len(choices))
    for field, preparation in zip(fields, preparations, strict=True):
        if preparation.masks and not masked:
            accepted = "another word, unless the request is an edit, whose MASK it takes"
            raise InvalidInput(f"{field}.preprocess", preparation.preprocess, accepted)
        _check_size(images[0], preparation, (width, height), field)
    return tuple(Control(*parts) for parts in zip(uses, images, preparations, strict=True))


def prepared(
    controls: tuple[Control, ...], width: int, height: int, mask: Array | None = None
) -> Array:
    """The images as ControlNets take them: (number, height, width, 3) of UINT8; of size 1 if there
    are none, since Triton batches requests only if they carry the same tensors.

    Args:
        controls: of a request.
        width: of its picture.
        height: of its picture.
        mask: of an edit (height, width), UINT8. If a control needs it, all images have a fourth
            channel: 255 where a ControlNet gets -1 instead of colours.
    """
    if not controls:
        return np.zeros((1, 1, 1, 3), np.uint8)
    images = np.stack([c.preparation.apply(c.image, width, height) for c in controls])
    if mask is None or not any(c.preparation.masks for c in controls):
        return images
    hidden = np.where(mask >= contract.EDITED, 255, 0).astype(np.uint8)[..., None]
    layers = [hidden if c.preparation.masks else np.zeros_like(hidden) for c in controls]
    return np.concatenate([images, np.stack(layers)], axis=3)


def identified(uses: Sequence[ControlUse], images: Array) -> tuple[ControlUse, ...]:
    """ControlNets with the digests of what `prepared` has made of their images."""
    named = zip(uses, images, strict=False)  # without ControlNets, there is one image all the same
    return tuple(replace(use, image=template_id(image)) for use, image in named)


def _use(field: str, choice: ControlElement, manifest: Manifest) -> ControlUse:
    if choice.name not in manifest.controlnets:
        raise unknown_name(f"{field}.name", choice.name, manifest.controlnets, "ControlNet")
    if choice.start >= choice.end:
        accepted = f"a number from 0 to below end, which is {choice.end:g}"
        raise InvalidInput(f"{field}.start", choice.start, accepted)
    kind = manifest.control_kind(choice.name)
    return ControlUse(
        choice.name,
        choice.scale,
        choice.start,
        choice.end,
        mode=_mode(field, choice, kind.modes),
        guess_mode=choice.guess_mode,
        pooled=kind.pooled,
    )


def _mode(field: str, choice: ControlElement, modes: int) -> int | None:
    """The number of a Union's mode; `None` for other ControlNets, which have none."""
    mode = choice.mode
    if not modes:
        if mode is None:
            return None
        accepted = f"nothing, since {choice.name} is no ControlNet-Union"
        raise InvalidInput(f"{field}.mode", mode, accepted)
    accepted = f"{', '.join(contract.modes_of(modes))}, or a number from 0 to {modes - 1}"
    if mode is None:
        raise InvalidInput.described(f"{field}.mode", "is missing", accepted)
    number = contract.CONTROL_MODES.get(mode, -1) if isinstance(mode, str) else mode
    if not 0 <= number < modes:
        raise InvalidInput(f"{field}.mode", mode, accepted)
    return number


def _preparation(field: str, choice: ControlElement) -> Preparation:
    for key, value, names in (
        ("preprocess", choice.preprocess, contract.PREPROCESSORS),
        ("resize", choice.resize, contract.RESIZES),
    ):
        if value not in names:
            raise InvalidInput(f"{field}.{key}", value, ", ".join(names))
    given = choice.model_dump(include={"low", "high"}, exclude_none=True)
    if given and choice.preprocess != "canny":
        key, value = next(iter(given.items()))
        raise InvalidInput(f"{field}.{key}", value, "nothing, unless preprocess is canny")
    made = Preparation(choice.preprocess, choice.resize, **given)
    if made.low > made.high:
        accepted = f"a number from 0 to high, which is {made.high:g}"
        raise InvalidInput(f"{field}.low", made.low, accepted)
    return made


def _images(inputs: Inputs, count: int) -> Array:
    """CONTROL_IMAGES: (count, h, w, 3)."""
    accepted = f"one image for each element of CONTROLS, which has {count or 'none'}"
    if "CONTROL_IMAGES" not in inputs:
        if count:
            raise InvalidInput.described("CONTROL_IMAGES", "is missing", accepted)
        return np.zeros((0, 1, 1, 3), np.uint8)
    images = inputs["CONTROL_IMAGES"][0]
    if len(images) != count:
        plural = "" if len(images) == 1 else "s"
        problem = f"has {len(images)} image{plural}"
        raise InvalidInput.described("CONTROL_IMAGES", problem, accepted)
    most = contract.MAX_CONTROL_SIDE
    if count and not all(1 <= side <= most for side in images.shape[1:3]):
        accepted = f"sides of 1 to {most} pixels"
        raise InvalidInput.described("CONTROL_IMAGES", f"has {pixels_of(images[0])}", accepted)
    pixels, most = images.size // 3, MAX_CONTROL_PIXELS
    if pixels > most:
        accepted = f"at most {most} pixels in all images together"
        raise InvalidInput.described("CONTROL_IMAGES", f"has {pixels} pixels", accepted)
    return images


def _check_size(image: Array, preparation: Preparation, size: tuple[int, int], field: str) -> None:
    width, height = size
    if preparation.resize == "none" and image.shape[:2] != (height, width):
        modes = ", ".join(contract.RESIZES[1:])
        accepted = (
            f"the picture's size, {width} x {height} pixels, or another and {field}.resize: {modes}"
        )
        raise InvalidInput.described("CONTROL_IMAGES", f"has {pixels_of(image)}", accepted)

"""ControlNets and the images that guide them, as callers name them and as they are sent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tessera.contract import RESIZES
from tessera.errors import brief
from tessera.types import Array
from tessera_client.checks import choice_of, flag_of, number_of, text_of, wrong_type
from tessera_client.fitting import Frame
from tessera_client.pictures import Picture, rgb_of

_SMOOTH = Image.Resampling.LANCZOS


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet to apply, and the picture that guides it.

    Attributes:
        name: of one in the server's bundle.
        image: a picture in any form of `Picture`; without `resize` it has the size of the picture
            to be made, or of the image that is edited.
        scale: of what it adds.
        start, end: shares of the steps between which it is active.
        preprocess: what the server makes of the image first: canny, grey, invert, or in an edit
            inpaint; left out, the image is ready (edges, a depth map, a pose ...).
        resize: how it is brought to the picture's size: stretch, fit (whole, between black bars) or
            fill (cut to its middle).
        low, high: thresholds of canny.
        mode: what the image is, for a ControlNet-Union: one of `CONTROL_MODES` or its number.
        guess_mode: whether it guides the prompt's branch only, its first residuals less than its
            last, as diffusers' `guess_mode`.
    """

    name: str
    image: Picture
    _: KW_ONLY
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    preprocess: str | None = None
    resize: str | None = None
    low: float | None = None
    high: float | None = None
    mode: str | int | None = None
    guess_mode: bool = False


@dataclass(frozen=True, eq=False)
class ReadControl:
    """A control whose picture is (h, w, 3) of UINT8, and the rest of it as it is sent."""

    image: Array
    settings: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its picture."""
        height, width = self.image.shape[:2]
        return width, height


def controls_of(controls: Any) -> list[ReadControl]:
    """What callers give as `controls`: a list of `Control`, or of dicts of its fields.

    Raises:
        TypeError, ValueError: something has a wrong type, or cannot be read.
    """
    accepted = "a list of Control, or of dicts of its fields"
    if isinstance(controls, str | bytes | Mapping | Control) or not isinstance(controls, Sequence):
        raise wrong_type("controls", controls, accepted)
    return [_read(f"controls[{i}]", each, accepted) for i, each in enumerate(controls)]


def sizes_differ(controls: Sequence[ReadControl]) -> bool:
    """Whether they cannot be sent together as they are."""
    return len({control.size for control in controls}) > 1


def control_inputs(
    controls: Sequence[ReadControl], frame: Frame | None = None
) -> dict[str, str | Array]:
    """CONTROLS and CONTROL_IMAGES; nothing if there are none.

    Args:
        controls: of one request.
        frame: what is drawn of which picture; `None` if the pictures are sent as they are.

    Raises:
        ValueError: the images have several sizes, and one that differs has no `resize`.
    """
    if not controls:
        return {}
    if frame is not None and (sizes_differ(controls) or not frame.whole):
        controls = [_framed(f"controls[{i}]", each, frame) for i, each in enumerate(controls)]
    if sizes_differ(controls):
        sizes = {f"{width} x {height}" for width, height in (each.size for each in controls)}
        raise ValueError(
            "the images of a request's ControlNets must have one size, or a resize each; "
            f"these have {' and '.join(sorted(sizes))} pixels"
        )
    images = np.stack([control.image for control in controls])
    return {"CONTROLS": json.dumps([each.settings for each in controls]), "CONTROL_IMAGES": images}


def _read(field: str, control: Any, accepted: str) -> ReadControl:
    names = [f.name for f in dataclasses.fields(Control)]
    if isinstance(control, Mapping):
        unknown = [key for key in control if key not in names]
        if unknown or not {"name", "image"} <= set(control):
            problem = f"has the key {brief(unknown[0])}" if unknown else "lacks name or image"
            raise ValueError(f"{field} {problem}; accepted: {', '.join(names)}")
        control = Control(**control)
    if not isinstance(control, Control):
        raise wrong_type(field, control, accepted)
    settings: dict[str, Any] = {"name": text_of(f"{field}.name", control.name)}
    for name in ("scale", "start", "end", "low", "high"):
        value = getattr(control, name)
        if value is not None:
            settings[name] = number_of(f"{field}.{name}", value)
    for name in ("preprocess", "resize"):
        if getattr(control, name) is not None:
            settings[name] = text_of(f"{field}.{name}", getattr(control, name))
    if control.mode is not None:
        settings["mode"] = _mode_of(f"{field}.mode", control.mode)
    if flag_of(f"{field}.guess_mode", control.guess_mode):
        settings["guess_mode"] = True
    order = [name for name in names if name in settings]
    image = rgb_of(f"{field}.image", control.image)
    return ReadControl(image, {name: settings[name] for name in order})


def _mode_of(field: str, mode: Any) -> str | int:
    if isinstance(mode, int | np.integer) and not isinstance(mode, bool):
        return int(mode)
    if isinstance(mode, str):
        return text_of(field, mode)
    raise wrong_type(field, mode, "a text or a whole number")


def _framed(field: str, control: ReadControl, frame: Frame) -> ReadControl:
    """A control whose picture shows what is drawn of the whole one."""
    settings = {k: v for k, v in control.settings.items() if k != "resize"}
    resize = choice_of(f"{field}.resize", control.settings.get("resize", RESIZES[0]), RESIZES)
    if control.size == frame.size:
        return ReadControl(frame.shown(control.image), settings)
    if resize == RESIZES[0]:
        raise ValueError(
            f"{field}.image has {control.size[0]} x {control.size[1]} pixels; accepted: "
            f"{frame.size[0]} x {frame.size[1]}, or a resize: stretch, fit, fill"
        )
    picture = Image.fromarray(control.image)
    if resize == "stretch":
        picture = picture.resize(frame.size, _SMOOTH)
    elif resize == "fit":
        picture = ImageOps.pad(picture, frame.size, _SMOOTH, "black")
    else:
        picture = ImageOps.fit(picture, frame.size, _SMOOTH)
    return ReadControl(frame.shown(np.asarray(picture)), settings)

"""`alwayson_scripts`: ControlNet units, as the extension sd-webui-controlnet has them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from tessera.contract import MAX_CANNY, MAX_CONTROL_SCALE, MAX_CONTROLS
from tessera_client import Control
from tessera_gateway.errors import ApiError, invalid, unfit
from tessera_gateway.openai.validation import from_fields

FIELD = "alwayson_scripts.controlnet"
_SCRIPT = "controlnet"
_MODULES = {
    "none": None,
    "canny": "canny",
    "invert": "invert",
    "invert (from white bg & black line)": "invert",
    "inpaint_only": "inpaint",
}
_RESIZES: dict[int | str, str] = {
    **dict.fromkeys((0, "Just Resize", "Resize", "Scale"), "stretch"),
    **dict.fromkeys((1, "Crop and Resize", "Inner Fit (Scale to Fit)"), "fill"),
    **dict.fromkeys((2, "Resize and Fill", "Outer Fit (Shrink to Fit)"), "fit"),
    **dict.fromkeys(("Scale to Fit (Inner Fit)",), "fill"),
    **dict.fromkeys(("Envelope (Outer Fit)",), "fit"),
}
_UNION_TYPES = {
    "openpose": "openpose",
    "depth": "depth",
    "soft edge": "hed",
    "hard edge": "canny",
    "normal map": "normal",
    "segmentation": "segment",
    "tile": "tile",
    "inpaint": "repaint",
}
"""`union_control_type` -> `mode` of a ControlNet-Union."""
_CANNY = (100.0, 200.0)
_HASH = re.compile(r" \[\w+\]$")


class Unit(BaseModel):
    """A ControlNet unit. Fields that it does not have are left out, as the extension does."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    enabled: bool = True
    module: str | None = None
    model: str = ""
    weight: float = Field(default=1.0, ge=-MAX_CONTROL_SCALE, le=MAX_CONTROL_SCALE)
    image: str | dict[str, Any] | None = None
    input_image: str | dict[str, Any] | None = None
    resize_mode: int | str = 1
    threshold_a: float | None = Field(default=None, le=MAX_CANNY)
    threshold_b: float | None = Field(default=None, le=MAX_CANNY)
    guidance_start: float = Field(default=0.0, ge=0, le=1)
    guidance_end: float | None = Field(default=None, ge=0, le=1)
    guidance: float | None = Field(default=None, ge=0, le=1)
    control_mode: int | str = 0
    union_control_type: str | None = None
    mask: str | None = None
    mask_image: str | None = None
    effective_region_mask: str | None = None
    advanced_weighting: list[float] | None = None


_PICTURES = ("image", "input_image", "mask", "mask_image", "effective_region_mask")
_REFUSED = ("mask", "mask_image", "effective_region_mask", "advanced_weighting")
_CONTROL_MODES: dict[int | str, bool] = {
    **dict.fromkeys((0, "0", "Balanced"), False),
    **dict.fromkeys((2, "2", "ControlNet is more important"), True),
}
"""`control_mode` -> diffusers' `guess_mode`: the extension weakens the first residuals by the same
factors, and leaves the negative prompt's branch alone.
"""


def read_controls(
    scripts: dict[str, Any], decode: Callable[[str, str], Image.Image], own: Image.Image | None
) -> list[Control]:
    """The ControlNets that scripts ask for.

    Args:
        scripts: `alwayson_scripts`.
        decode: makes a picture of base64 and the name of its field.
        own: for units without an image; `None` if they must have one.

    Raises:
        ApiError: another script is asked for (422, as webui answers), or a unit is not accepted.
    """
    controls: list[Control] = []
    for name, script in scripts.items():
        if name.lower() != _SCRIPT:
            raise ApiError(422, f"always on script {name[:80]} not found", "unknown_script")
        units = script.get("args") if isinstance(script, dict) else None
        if not isinstance(units, list):
            raise unfit(FIELD, "has no list of units", '{"args": [...]}')
        for number, given in enumerate(units):
            place = f"{FIELD}.args[{number}]"
            if not isinstance(given, dict):
                raise invalid(place, given, "an object")
            unit = _unit(place, given)
            if unit.enabled:
                controls.append(_control(place, unit, decode, own))
    if len(controls) > MAX_CONTROLS:
        raise unfit(FIELD, f"has {len(controls)} units", f"up to {MAX_CONTROLS}")
    return controls


def without_pictures(scripts: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same scripts, as `read_controls` accepts them, without the pictures of their units."""
    return scripts and {
        name: {**script, "args": [_fields(unit) for unit in script["args"]]}
        for name, script in scripts.items()
    }


def _fields(unit: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in unit.items() if name not in _PICTURES}


def _unit(place: str, given: dict[str, Any]) -> Unit:
    try:
        return from_fields(Unit, given)
    except ApiError as error:
        raise ApiError(400, f"{place}.{error}", "invalid_value") from None


def _control(
    place: str, unit: Unit, decode: Callable[[str, str], Image.Image], own: Image.Image | None
) -> Control:
    module = (unit.module or "none").lower()
    if module not in _MODULES:
        raise invalid(f"{place}.module", unit.module, ", ".join(_MODULES))
    if unit.resize_mode not in _RESIZES:
        accepted = "Just Resize, Crop and Resize, Resize and Fill"
        raise invalid(f"{place}.resize_mode", unit.resize_mode, accepted)
    if unit.control_mode not in _CONTROL_MODES:
        accepted = "Balanced, ControlNet is more important"
        raise invalid(f"{place}.control_mode", unit.control_mode, accepted)
    for name in _REFUSED:
        if getattr(unit, name) is not None:
            raise unfit(f"{place}.{name}", "is given", "nothing: this server does not have it")
    end = unit.guidance_end if unit.guidance_end is not None else unit.guidance
    low, high = _thresholds(unit) if module == "canny" else (None, None)
    return Control(
        _HASH.sub("", unit.model),
        np.asarray(_image(place, unit, decode, own).convert("RGB")),
        scale=unit.weight,
        start=unit.guidance_start,
        end=1.0 if end is None else end,
        preprocess=_MODULES[module],
        resize=_RESIZES[unit.resize_mode],
        low=low,
        high=high,
        mode=_UNION_TYPES.get((unit.union_control_type or "").lower()),
        guess_mode=_CONTROL_MODES[unit.control_mode],
    )


def _thresholds(unit: Unit) -> tuple[float, float]:
    """Below 0 is what the extension would take."""
    given = (unit.threshold_a, unit.threshold_b)
    low, high = (
        usual if value is None or value < 0 else value
        for value, usual in zip(given, _CANNY, strict=True)
    )
    return low, high


def _image(
    place: str, unit: Unit, decode: Callable[[str, str], Image.Image], own: Image.Image | None
) -> Image.Image:
    sent = unit.image if unit.image is not None else unit.input_image
    if isinstance(sent, dict):
        if sent.get("mask") is not None:
            raise unfit(f"{place}.image.mask", "is given", "nothing: this server does not have it")
        sent = sent.get("image")
    if isinstance(sent, str) and sent:
        return decode(sent, f"{place}.image")
    if own is None:
        raise unfit(f"{place}.image", "is missing", "a picture in base64")
    return own

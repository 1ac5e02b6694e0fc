"""ControlNets and the images that guide them, as callers name them and as they are sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from tessera.types import Array
from tessera_client.pictures import Picture, rgb_of

_SETTINGS = ("name", "scale", "start", "end", "preprocess", "resize", "low", "high")


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet to apply, and the picture that guides it.

    Attributes:
        name: of one in the server's bundle.
        image: a picture or an array (h, w, 3) of uint8; without `resize` it has the size of the
            picture to be made. All images of a request have one size.
        scale: of what it adds.
        start, end: shares of the steps between which it is active.
        preprocess: what the server makes of the image first: canny, grey or invert; left out, the
            image is ready (edges, a depth map, a pose ...).
        resize: how the server brings it to the picture's size: stretch, fit (whole, between black
            bars) or fill (cut to its middle).
        low, high: thresholds of canny.
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


def control_inputs(controls: Sequence[Control]) -> dict[str, str | Array]:
    """CONTROLS and CONTROL_IMAGES; nothing if there are none.

    Raises:
        TypeError: an image has the wrong type or shape.
        ValueError: the images have several sizes.
    """
    if not controls:
        return {}
    images = [rgb_of(control.image) for control in controls]
    sizes = {f"{image.shape[1]} x {image.shape[0]}" for image in images}
    if len(sizes) > 1:
        raise ValueError(
            "the images of a request's ControlNets must have one size; "
            f"these have {' and '.join(sorted(sizes))} pixels"
        )
    settings = [{key: getattr(control, key) for key in _SETTINGS} for control in controls]
    given = [{k: v for k, v in each.items() if v is not None} for each in settings]
    return {"CONTROLS": json.dumps(given), "CONTROL_IMAGES": np.stack(images)}

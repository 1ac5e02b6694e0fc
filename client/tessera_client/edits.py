"""What an edit sends beside a prompt: an image or the id of a template, and a mask in whatever form
the caller has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from tessera.contract import EDIT
from tessera.types import Array
from tessera_client.messages import EditOptions, picture_call
from tessera_client.pictures import Picture, rgb_of
from tessera_client.wire import Call

Rectangle = tuple[int, int, int, int]
"""(x, y, width, height) in pixels from the top left corner."""

Mask = Picture | Rectangle | None
"""A picture or array whose light pixels (128 and more; of a boolean array, the true ones) are
edited, a rectangle, or `None`: where the image is transparent."""


def edit_call(
    image: Picture | None, mask: Mask, prompt: str, job_id: str, options: EditOptions
) -> Call:
    """The call of `edit`.

    Raises:
        TypeError: an option is not one of `EditOptions`, or something has the wrong type.
        ValueError: the mask cannot be made of what is given, or the images of ControlNets have
            several sizes.
    """
    given: dict[str, Any] = {"PROMPT": prompt, "JOB_ID": job_id, "MASK": mask_of(mask, image)}
    if image is not None:
        given["IMAGE"] = rgb_of(image)
    return picture_call("edit", EDIT, given, options, EditOptions)


def mask_of(mask: Mask, image: Picture | None) -> Array:
    """A mask as (h, w) of UINT8; see `Mask`.

    Raises:
        TypeError: it has the wrong type or shape.
        ValueError: it is a rectangle or `None`, and the image does not say what that means.
    """
    if mask is None:
        return _transparent(image)
    if isinstance(mask, tuple):
        return _rectangle(mask, image)
    if isinstance(mask, Image.Image):
        return np.asarray(mask.convert("L"))
    if mask.dtype == np.bool_:
        mask = mask.astype(np.uint8) * 255
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise TypeError(
            f"a mask is an array (h, w) of uint8 or bool, not {mask.shape} of {mask.dtype}"
        )
    return mask


def _transparent(image: Picture | None) -> Array:
    """255 where the image is transparent."""
    if isinstance(image, Image.Image) and image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    elif isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 4:
        alpha = image[..., 3]
    else:
        raise ValueError(
            "there is no mask, and the image has no transparent part that could be one"
        )
    return 255 - alpha


def _rectangle(mask: Rectangle, image: Picture | None) -> Array:
    if image is None:
        raise ValueError("a rectangle as mask needs the image, whose size it does not know")
    if isinstance(image, Image.Image):
        width, height = image.size
    else:
        height, width = image.shape[:2]
    x, y, w, h = mask
    if not (0 <= x < x + w <= width and 0 <= y < y + h <= height):
        raise ValueError(
            f"the rectangle {x},{y},{w},{h} is not within the image of {width} x {height} pixels"
        )
    array = np.zeros((height, width), np.uint8)
    array[y : y + h, x : x + w] = 255
    return array

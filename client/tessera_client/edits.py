"""What an edit sends beside a prompt: an image or the id of a template, and a mask in whatever form
the caller has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from tessera.contract import EDITED, MaskKind
from tessera.types import Array
from tessera_client.checks import integer_of, text_of, wrong_type, wrong_value
from tessera_client.pictures import Picture, alpha_of, picture_of

Rectangle = Sequence[int]
"""(x, y, width, height) in pixels from the top left corner; a list or an array as well."""

Mask = Picture | Rectangle | None
"""A picture or array whose light pixels (128 and more; of a boolean array, the true ones) are
edited, a rectangle, or `None`: where the image is transparent (alpha below 128; with `mask_kind`
soft, below 255). An image that is nowhere so is edited as a whole, if there is a `strength`, or
only gets the room around it that `extend` asks for. So is a template."""

_LARGEST = 2**31


@dataclass(frozen=True, eq=False)
class Region:
    """A further mask of an edit, and the prompt that draws there."""

    mask: Mask
    prompt: str


@dataclass(frozen=True, eq=False)
class ReadRegion:
    """A region whose mask is (h, w) of UINT8."""

    mask: Array
    prompt: str


def regions_of(
    regions: Any, image: Image.Image | None, mask_kind: str | None = None
) -> list[ReadRegion]:
    """What callers give as `regions`: a list of `Region`, or of dicts of its fields.

    Args:
        regions: of an edit.
        image: of the edit, the right way up; `None` if a template is edited.
        mask_kind: of the edit.

    Raises:
        TypeError, ValueError: something has a wrong type, or is no mask of the image.
    """
    accepted = "a list of Region, or of dicts with mask and prompt"
    if isinstance(regions, str | bytes | Mapping | Region) or not isinstance(regions, Sequence):
        raise wrong_type("regions", regions, accepted)
    found = []
    for index, region in enumerate(regions):
        if isinstance(region, Mapping) and set(region) == {"mask", "prompt"}:
            region = Region(**region)
        if not isinstance(region, Region):
            raise wrong_type(f"regions[{index}]", region, accepted)
        prompt = text_of(f"regions[{index}].prompt", region.prompt)
        mask = mask_of(region.mask, image, {"mask_kind": mask_kind})
        found.append(ReadRegion(mask, prompt))
    return found


def mask_of_edit(mask: Mask, image: Image.Image | None, options: Mapping[str, Any]) -> Array | None:
    """The mask of an edit as `mask_of` has it; `None` for a template that is edited without one,
    whose size only the server knows.

    Raises:
        TypeError, ValueError: see `mask_of`.
    """
    whole = any(options.get(name) is not None for name in ("strength", "extend"))
    if mask is None and image is None and whole:
        return None
    return mask_of(mask, image, options)


def mask_of(
    mask: Mask, image: Image.Image | None, options: Mapping[str, Any] = MappingProxyType({})
) -> Array:
    """A mask as (h, w) of UINT8; see `Mask`.

    Args:
        mask: in any of its forms.
        image: of the edit, the right way up; `None` if a template is edited.
        options: of the edit.

    Raises:
        TypeError: it has the wrong type or shape.
        ValueError: it is a rectangle or `None`, and the image does not say what that means; or
            it has transparent parts, or another size than the image.
    """
    if mask is None:
        return _without(image, options)
    if _is_rectangle(mask):
        return _rectangle(mask, image)
    picture: Any = mask
    found = np.asarray(_opaque(picture_of("mask", picture)).convert("L"))
    if image is not None and found.shape != (image.height, image.width):
        raise ValueError(
            f"mask has {found.shape[1]} x {found.shape[0]} pixels; "
            f"accepted: the image's {image.width} x {image.height}"
        )
    return found


def _is_rectangle(mask: Any) -> bool:
    if isinstance(mask, np.ndarray):
        return mask.ndim == 1
    return isinstance(mask, Sequence) and not isinstance(mask, str | bytes)


def _opaque(mask: Image.Image) -> Image.Image:
    """A mask without transparency. With it, editors mean opposite things: some paint the mask on a
    transparent layer, others erase the picture where it is to be edited.

    Raises:
        ValueError: parts of it are transparent.
    """
    alpha = alpha_of(mask)
    if alpha is not None and alpha.min() < 255:
        raise ValueError(
            "the mask has transparent parts; accepted: a mask in grey. If what is painted on a "
            'transparent layer is to be edited, pass mask.getchannel("A"). If the transparent part '
            "of a picture is to be edited, pass that picture as image and no mask"
        )
    return mask


def transparent_of(image: Image.Image, mask_kind: str | None) -> Array | None:
    """Where an edit without a mask edits: 255 where an image is transparent, (h, w) of UINT8;
    `None` if it is nowhere so transparent that an edit with such a mask would change anything.
    """
    alpha = alpha_of(image)
    if alpha is None or 255 - int(alpha.min()) < (1 if mask_kind == MaskKind.SOFT else EDITED):
        return None
    return 255 - alpha


def _without(image: Image.Image | None, options: Mapping[str, Any]) -> Array:
    """What an edit without a mask edits, as a mask."""
    if image is not None:
        clear = transparent_of(image, options.get("mask_kind"))
        if clear is not None:
            return clear
        if options.get("extend") is not None:
            return np.zeros((image.height, image.width), np.uint8)
        if options.get("strength") is not None:
            return np.full((image.height, image.width), 255, np.uint8)
    raise ValueError(
        "there is no mask, and the image has no transparent part that could be one; "
        "accepted: a mask, or a strength to edit the whole image"
    )


def _rectangle(mask: Any, image: Image.Image | None) -> Array:
    if image is None:
        raise ValueError("a rectangle as mask needs the image, whose size it does not know")
    if len(mask) != 4:
        raise wrong_value("mask", list(mask), "a rectangle x, y, width, height of four integers")
    x, y, w, h = (integer_of(f"mask[{i}]", n, -_LARGEST, _LARGEST) for i, n in enumerate(mask))
    width, height = image.size
    if not (0 <= x < x + w <= width and 0 <= y < y + h <= height):
        raise ValueError(
            f"the rectangle {x},{y},{w},{h} is not within the image of {width} x {height} pixels"
        )
    array = np.zeros((height, width), np.uint8)
    array[y : y + h, x : x + w] = 255
    return array

"""Checks where an edit may change its image, and how strongly: MASK and MASK_KIND.

Light: the `edit` model, which imports no networks, reads them, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tessera import contract
from tessera.contract.limits import FEATHER, MAX_FEATHER, MAX_REGIONS
from tessera.errors import InvalidInput
from tessera.requests.fields import Inputs, pixels_of, scalar_of, text_of
from tessera.types import Array


@dataclass(frozen=True)
class EditMask:
    """Where an edit may change its image.

    Attributes:
        edited: (h, w) of UINT8; pixels of `contract.EDITED` and above may change.
        strengths: (h, w) of UINT8, how strongly each pixel is edited; `None` of a hard mask.
        owners: (h, w) of UINT8, whose prompt draws each pixel: 0 for PROMPT, 1 for the first
            region; `None` without regions.
    """

    edited: Array
    strengths: Array | None = None
    owners: Array | None = None


def read_mask(inputs: Inputs, image: Array) -> EditMask:
    """Of an edit of `image` (h, w, 3): of MASK and of its regions together.

    Raises:
        InvalidInput: it has another size than the image, or edits nothing; or MASK_KIND is another
            word.
    """
    mask, kind = inputs["MASK"][0], read_mask_kind(inputs)
    check_mask_size(mask, image)
    own = mask_of_kind(mask, kind)
    more = read_region_masks(inputs, image)
    if not len(more):
        return own
    together = np.concatenate([mask[None], more])
    edited = np.where(editing(together, kind).any(0), np.uint8(255), np.uint8(0))
    owners = owners_of(together, kind)
    strengths = None if own.strengths is None else together.max(0)
    return EditMask(edited, strengths, owners)


def read_region_masks(inputs: Inputs, image: Array) -> Array:
    """REGION_MASKS (n, h, w) of UINT8 of an edit of `image` (h, w, 3); n is 0 without regions.

    Raises:
        InvalidInput: there are not as many as REGION_PROMPTS, or too many; or one has another size,
            or edits nothing.
    """
    empty: Array = np.zeros((0, *image.shape[:2]), np.uint8)
    masks = inputs["REGION_MASKS"][0] if "REGION_MASKS" in inputs else empty
    prompts = inputs["REGION_PROMPTS"].size if "REGION_PROMPTS" in inputs else 0
    if len(masks) != prompts:
        accepted = f"one mask for each of REGION_PROMPTS, which has {prompts or 'none'}"
        problem = f"has {len(masks)} mask{'' if len(masks) == 1 else 's'}"
        raise InvalidInput.described("REGION_MASKS", problem, accepted)
    if len(masks) > MAX_REGIONS:
        problem = f"has {len(masks)} masks"
        raise InvalidInput.described("REGION_MASKS", problem, f"at most {MAX_REGIONS}")
    kind = read_mask_kind(inputs)
    for index, mask in enumerate(masks):
        check_mask_size(mask, image, f"REGION_MASKS[{index}]")
        mask_of_kind(mask, kind, f"REGION_MASKS[{index}]")
    return masks


def editing(mask: Array, kind: str) -> Array:
    """Where a mask of that kind edits at all: booleans of its shape."""
    found: Array = mask >= (1 if kind == contract.MaskKind.SOFT else contract.EDITED)
    return found


def owners_of(masks: Array, kind: str) -> Array:
    """For each pixel (h, w), the last of the masks (n, h, w) that edits it; 0 if none does."""
    owners = np.zeros(masks.shape[1:], np.uint8)
    for index, mask in enumerate(masks):
        owners[editing(mask, kind)] = index
    return owners


def check_mask_size(mask: Array, image: Array, name: str = "MASK") -> None:
    """See whether a mask (h, w) has the size of an image (h, w, 3).

    Raises:
        InvalidInput: it has another.
    """
    if mask.shape != image.shape[:2]:
        accepted = f"the size of the image, {pixels_of(image)}"
        raise InvalidInput.described(name, f"has {pixels_of(mask)}", accepted)


def read_mask_kind(inputs: Inputs) -> str:
    """MASK_KIND, or the default.

    Raises:
        InvalidInput: it is another word.
    """
    kind = text_of(inputs, "MASK_KIND", contract.MASK_KINDS[0], 100)
    if kind not in contract.MASK_KINDS:
        raise InvalidInput("MASK_KIND", kind, ", ".join(contract.MASK_KINDS))
    return kind


def read_fill(inputs: Inputs) -> str:
    """MASK_FILL, or the default.

    Raises:
        InvalidInput: it is another word, or the mask is soft: what it holds is the image.
    """
    fill = text_of(inputs, "MASK_FILL", contract.MASK_FILLS[0], 100)
    if fill not in contract.MASK_FILLS:
        raise InvalidInput("MASK_FILL", fill, ", ".join(contract.MASK_FILLS))
    if fill != contract.MASK_FILLS[0] and read_mask_kind(inputs) == contract.MaskKind.SOFT:
        accepted = f"{contract.MASK_FILLS[0]}, since MASK_KIND is soft"
        raise InvalidInput("MASK_FILL", fill, accepted)
    return fill


def read_feather(inputs: Inputs) -> int:
    """MASK_FEATHER, or the default.

    Raises:
        InvalidInput: it is out of range.
    """
    width = int(scalar_of(inputs["MASK_FEATHER"])) if "MASK_FEATHER" in inputs else FEATHER
    if not 1 <= width <= MAX_FEATHER:
        raise InvalidInput("MASK_FEATHER", width, f"pixels, from 1 to {MAX_FEATHER}")
    return width


def read_tone(inputs: Inputs) -> str:
    """MASK_TONE, or the default.

    Raises:
        InvalidInput: it is another word.
    """
    tone = text_of(inputs, "MASK_TONE", contract.MASK_TONES[0], 100)
    if tone not in contract.MASK_TONES:
        raise InvalidInput("MASK_TONE", tone, ", ".join(contract.MASK_TONES))
    return tone


def mask_of_kind(mask: Array, kind: str, name: str = "MASK") -> EditMask:
    """The mask (h, w) as it is meant.

    Raises:
        InvalidInput: it edits nothing.
    """
    soft = kind == contract.MaskKind.SOFT
    least = 1 if soft else contract.EDITED
    if not (mask >= least).any():
        accepted = f"{least} to 255 where the image is edited, less elsewhere"
        raise InvalidInput.described(name, f"has no pixel of {least} or more", accepted)
    if not soft:
        return EditMask(mask)
    return EditMask(np.where(mask > 0, np.uint8(255), np.uint8(0)), mask)

"""img2img: what the server gets, and what its picture is made into. Work for a thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from tessera.contract import SIZE_STEP, MaskFill
from tessera.types import Array
from tessera_client import ServedBundle
from tessera_gateway.errors import unfit
from tessera_gateway.pictures import decode_url
from tessera_gateway.sdapi.fields import Img2Img, check_size
from tessera_gateway.sdapi.masks import Mask, read_mask
from tessera_gateway.sdapi.resizing import resized

_FILLS = (MaskFill.BLUR, MaskFill.ORIGINAL, MaskFill.NOISE)
"""Of the server, by the numbers of `inpainting_fill`."""


@dataclass(frozen=True)
class Edit:
    """One edit.

    Attributes:
        image: what the server edits, (h, w, 3) of uint8.
        mask: where, (h, w) of uint8.
        options: of the edit, as the SDK has them.
        weight: of the result in the image; `None` if the result is the answer.
    """

    image: Array
    mask: Array
    options: dict[str, Any] = field(default_factory=dict)
    weight: Image.Image | None = None

    def finished(self, drawn: Image.Image) -> Image.Image:
        """The answer's picture, of what the server has drawn."""
        if self.weight is None:
            return drawn
        whole = Image.fromarray(self.image)
        whole.paste(drawn, mask=self.weight)
        return whole


def read_edit(sent: Img2Img, bundle: ServedBundle, max_pixels: int) -> Edit:
    """The edit that a request asks for.

    Args:
        sent: the request.
        bundle: which sizes can be drawn.
        max_pixels: of a picture in the request.

    Raises:
        ApiError: a picture is not accepted.
    """
    picture = decode_url(sent.init_images[0], "init_images[0]", max_pixels).convert("RGB")
    size = (sent.width or _floor(picture.width), sent.height or _floor(picture.height))
    check_size(*size, bundle)
    if sent.mask is None:
        base = np.asarray(resized(picture, size, sent.resize_mode))
        return Edit(base, np.full(size[::-1], 255, np.uint8))
    mask = _mask(sent, sent.mask, picture, max_pixels)
    options: dict[str, Any] = {"mask_fill": _FILLS[sent.inpainting_fill]}
    if sent.inpaint_full_res:
        options["padding_mask_crop"] = sent.inpaint_full_res_padding
        options |= {"width": size[0], "height": size[1]}
    else:
        picture = resized(picture, size, sent.resize_mode)
        mask = mask.resized(size, sent.resize_mode)
    weight = mask.weight if mask.soft else None
    return Edit(np.asarray(picture), mask.edited, options, weight)


def _mask(sent: Img2Img, data: str, picture: Image.Image, max_pixels: int) -> Mask:
    drawn = decode_url(data, "mask", max_pixels)
    if drawn.size != picture.size:
        raise unfit(
            "mask",
            f"has {drawn.width} x {drawn.height} pixels",
            f"{picture.width} x {picture.height}, as init_images[0]",
        )
    mask = read_mask(drawn, invert=sent.inpainting_mask_invert == 1, blur=sent.blur)
    if not mask.edited.any():
        raise unfit("mask", "has nothing to edit", "white pixels where to edit")
    return mask


def _floor(side: int) -> int:
    return max(side - side % SIZE_STEP, SIZE_STEP)

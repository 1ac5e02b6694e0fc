"""Masks of img2img: white is edited, with a soft border if there is a blur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from tessera.contract import EDITED
from tessera.types import Array
from tessera_gateway.sdapi.resizing import resized


@dataclass(frozen=True)
class Mask:
    """A mask of a picture.

    Attributes:
        weight: of the new picture, in mode L.
        soft: whether it has values between 0 and 255, so that the gateway has to paste.
    """

    weight: Image.Image
    soft: bool

    @property
    def edited(self) -> Array:
        """(h, w) of uint8, 255 wherever the new picture has any weight."""
        return np.where(np.asarray(self.weight) > 0, 255, 0).astype(np.uint8)

    def resized(self, size: tuple[int, int], mode: int) -> Mask:
        """At the size (width, height) of a picture that is resized in a mode."""
        weight = resized(self.weight, size, mode)
        if not self.soft:
            weight = weight.point(lambda value: 255 if value >= EDITED else 0)
        return Mask(weight, self.soft)


def read_mask(picture: Image.Image, *, invert: bool, blur: tuple[int, int]) -> Mask:
    """The mask in a picture: where it is not transparent, if anything of it is; else where it is
    light.
    """
    grey = np.asarray(_grey(picture)) >= EDITED
    if invert:
        grey = ~grey
    hard = Image.fromarray(np.where(grey, 255, 0).astype(np.uint8))
    if blur == (0, 0):
        return Mask(hard, soft=False)
    return Mask(hard.filter(ImageFilter.GaussianBlur(blur)), soft=True)


def _grey(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha
    return picture.convert("L")

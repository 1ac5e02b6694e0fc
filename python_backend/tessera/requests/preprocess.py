"""Makes the picture that a ControlNet takes out of the image that a caller has: its size, and
edges, greys or the negative of it. Depth, poses and the like need networks, and are the caller's.

Knows nothing of requests. Images are arrays (h, w, 3) of UINT8, RGB. OpenCV is imported when it is
first needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Preparation:
    """What is done to one image.

    Attributes:
        preprocess: one of `PREPROCESSORS`.
        resize: one of `RESIZES`.
        low, high: thresholds of `canny`, as OpenCV means them; the usual ones of ControlNets.
    """

    preprocess: str = "none"
    resize: str = "none"
    low: float = 100.0
    high: float = 200.0

    @property
    def masks(self) -> bool:
        """Whether the pixels under an edit's mask are hidden from the ControlNet."""
        return self.preprocess == "inpaint"

    @property
    def report(self) -> dict[str, Any]:
        """What of it takes place, as INFO says it."""
        said: dict[str, Any] = {} if self.resize == "none" else {"resize": self.resize}
        if self.preprocess != "none":
            said["preprocess"] = self.preprocess
        if self.preprocess == "canny":
            said |= {"low": self.low, "high": self.high}
        return said

    def apply(self, image: Image, width: int, height: int) -> Image:
        """The image at the picture's size; with `resize` none it has that size already.

        Bars that `fit` leaves free are black whatever else is done: they have no edges and are not
        inverted.
        """
        sized = RESIZES[self.resize](image, width, height)
        return _framed(PREPROCESSORS[self.preprocess](sized, self), width, height)


def _canny(image: Image, preparation: Preparation) -> Image:
    """White on black."""
    import cv2

    return _three(cv2.Canny(image, preparation.low, preparation.high))


def _grey(image: Image, preparation: Preparation) -> Image:
    import cv2

    return _three(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def _three(plane: Image) -> Image:
    return np.repeat(plane[..., None], 3, axis=2)


def _stretched(image: Image, width: int, height: int) -> Image:
    """Each axis by itself: averaged where it shrinks, then Lanczos where it grows."""
    import cv2

    h, w = image.shape[:2]
    small = cv2.resize(image, (min(w, width), min(h, height)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LANCZOS4))


def _fitted(image: Image, width: int, height: int) -> Image:
    """The whole image as large as it fits; one of the sides may be smaller than the picture's."""
    h, w = image.shape[:2]
    scale = min(width / w, height / h)
    return _stretched(image, max(1, round(w * scale)), max(1, round(h * scale)))


def _filling(image: Image, width: int, height: int) -> Image:
    """The largest part of the picture's proportions around the image's centre."""
    h, w = image.shape[:2]
    cut_w = max(1, min(w, round(h * width / height)))
    cut_h = max(1, min(h, round(w * height / width)))
    left, top = (w - cut_w) // 2, (h - cut_h) // 2
    return _stretched(image[top : top + cut_h, left : left + cut_w], width, height)


def _framed(image: Image, width: int, height: int) -> Image:
    """In the middle of black."""
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    framed = np.zeros((height, width, 3), np.uint8)
    left, top = (width - w) // 2, (height - h) // 2
    framed[top : top + h, left : left + w] = image
    return framed


PREPROCESSORS: dict[str, Callable[[Image, Preparation], Image]] = {
    "none": lambda image, preparation: image,
    "canny": _canny,
    "grey": _grey,
    "invert": lambda image, preparation: np.invert(image),
    "inpaint": lambda image, preparation: image,  # what the mask hides is no colour
}
"""By the contract's name; what is made has the image's own size."""

RESIZES: dict[str, Callable[[Image, int, int], Image]] = {
    "none": lambda image, width, height: image,
    "stretch": _stretched,
    "fit": _fitted,
    "fill": _filling,
}
"""By the contract's name: (image, the picture's width and height) -> at most that size."""

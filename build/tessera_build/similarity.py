"""How similar two pictures are inside a mask."""

from __future__ import annotations

import cv2
import numpy as np

from tessera.types import Array


def ssim(one: Array, other: Array, mask: Array) -> float:
    """Structural similarity (Wang et al. 2004, eq. 13; Gaussian window of 1.5), the mean of its map
    inside the mask, on luminance in 0..255.
    """
    a, b = (cv2.cvtColor(i, cv2.COLOR_RGB2GRAY).astype(np.float64) for i in (one, other))

    def blurred(image: Array) -> Array:
        return np.asarray(cv2.GaussianBlur(image, (11, 11), 1.5))

    mean_a, mean_b = blurred(a), blurred(b)
    variance_a, variance_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance: Array = blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float((above / below)[mask >= 128].mean())

"""What the masked part of an edit is denoised from at less than full strength: the image itself,
the colours around it, or noise. Knows arrays, nothing of requests.
"""

from __future__ import annotations

import numpy as np
import torch

from tessera.contract import EDITED
from tessera.types import Array

_SMALLEST = 2
"""Side in pixels at which a picture is not made smaller any more."""


def blurred(image: Array, mask: Array) -> Array:
    """An image whose masked part has the colours around it, near ones more than far ones.

    The rest is averaged over ever larger squares, and each pixel gets the finest average there is
    ("push-pull", Gortler et al. 1996, section 3.5).

    Args:
        image: (h, w, 3), UINT8.
        mask: (h, w), UINT8.
    """
    known = (mask < EDITED).astype(np.float32)
    if not known.any():
        return image
    whole = _pulled(image * known[..., None], known)
    result: Array = np.where(known[..., None] > 0, image, whole.round().clip(0, 255))
    return result.astype(np.uint8)


def noise_like(clean: torch.Tensor, seed: int) -> torch.Tensor:
    """Latents (c, h, w) of noise, which have nothing in common with the noise that SEED stands for
    at the start and between steps: else their sum would have too much of it.
    """
    rng = np.random.default_rng([seed, clean.numel()])
    return torch.from_numpy(rng.standard_normal(tuple(clean.shape), np.float32))


def _pulled(colours: Array, weights: Array) -> Array:
    """Colours (h, w, 3) everywhere, of sums of colours and their weights (h, w)."""
    import cv2

    height, width = weights.shape
    mean = colours / np.maximum(weights, 1e-6)[..., None]
    if weights.min() >= 1 or max(height, width) <= _SMALLEST:
        total = max(float(weights.sum()), 1e-6)
        return np.where(weights[..., None] > 0, mean, colours.sum((0, 1)) / total)
    half = ((width + 1) // 2, (height + 1) // 2)
    coarse = _pulled(
        cv2.resize(colours, half, interpolation=cv2.INTER_AREA),
        cv2.resize(weights, half, interpolation=cv2.INTER_AREA),
    )
    wide = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    share = np.minimum(weights, 1)[..., None]
    result: Array = share * mean + (1 - share) * wide
    return result

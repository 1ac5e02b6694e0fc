"""Latents to small pictures without a network, for previews. Knows numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tessera.manifest import LinearDecoder


def decode_linearly(
    decoder: LinearDecoder, latents: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """A picture (h, w, 3), UINT8, of latents (c, h, w): one pixel for each latent."""
    weights = np.asarray(decoder.weights, np.float32)  # (c, 3)
    colours = np.tensordot(latents, weights, axes=(0, 0)) + np.asarray(decoder.bias, np.float32)
    pixels: npt.NDArray[np.uint8] = colours.round().clip(0, 255).astype(np.uint8)
    return pixels

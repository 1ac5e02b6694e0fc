"""Previews without a network."""

from __future__ import annotations

import numpy as np

from tessera.codec.linear import decode_linearly
from tessera.manifest import LinearDecoder


def test_each_latent_is_a_pixel() -> None:
    decoder = LinearDecoder([[100.0, 0.0, 0.0], [0.0, 10.0, 1.0]], [5.0, 6.0, 7.0], 1.0, 0.0)
    latents = np.zeros((2, 2, 3), np.float32)
    latents[:, 1, 2] = 1.0, 2.4
    latents[0, 0, 1] = -9.0
    latents[0, 0, 2] = 9.0
    picture = decode_linearly(decoder, latents)
    assert (picture.shape, picture.dtype.name) == ((2, 3, 3), "uint8")
    assert picture[0, 0].tolist() == [5, 6, 7]
    assert picture[1, 2].tolist() == [105, 30, 9]
    assert [picture[0, 1, 0], picture[0, 2, 0]] == [0, 255]

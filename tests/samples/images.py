"""Pictures and masks that no server has made."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def ramp(width: int = 128, height: int = 128) -> Any:
    """A picture without any help from the server."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 17), np.cos(y / 7), np.sin((x + 2 * y) / 23)]
    return np.stack([(127 + 120 * w).astype(np.uint8) for w in waves], -1)


def island(width: int = 128, height: int = 128) -> Any:
    """A mask whose borders are those of latents of any size up to 8, so that diffusers' nearest
    neighbour reads the same mask.
    """
    mask = np.zeros((height, width), np.uint8)
    mask[24:72, 32:96] = 255
    mask[80:96, 8:24] = 128
    mask[32:40, 40:48] = 127
    return mask


def largest(result: Any, expected: Any) -> int:
    return int(np.abs(np.asarray(result.image, np.int16) - expected.astype(np.int16)).max())


def noise_blocks(seed: int, width: int = 128, height: int = 128) -> Image.Image:
    """Random blocks: sharp edges, every grey and colour."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)

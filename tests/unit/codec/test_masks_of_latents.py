"""Masks at the size of latents: soft ones as the published code has them, hard masks as the special
case, and the shares of prompts.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from tessera.codec.masks import active_latents, latent_strengths, prompt_weights


@pytest.mark.parametrize("pixels", [4, 8])
def test_a_soft_mask_is_resized_as_the_published_code_does(pixels: int) -> None:
    """Differential diffusion's: `Resize(size, antialias=None)` of torchvision, bilinear."""
    mask = np.random.default_rng(1).integers(1, 255, (64, 96), np.uint8)
    size = (64 // pixels, 96 // pixels)
    resized = interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="bilinear")
    found = latent_strengths(mask, pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, resized[0, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("pixels", [4, 8])
def test_a_soft_mask_of_0_and_255_is_a_hard_one(pixels: int) -> None:
    mask = np.zeros((64, 96), np.uint8)
    for left, top, width, height in ((3, 5, 1, 1), (20, 8, 24, 32), (70, 1, 13, 2)):
        mask[top : top + height, left : left + width] = 255
        assert (latent_strengths(mask, pixels) == 255 * active_latents(mask, pixels)).all()


def test_every_latent_with_a_pixel_to_edit_is_active() -> None:
    mask = np.zeros((8, 16), np.uint8)
    mask[0, 0], mask[1, 9:11], mask[3:5, 11] = 200, (255, 9), (40, 60)
    assert latent_strengths(mask, 8).tolist() == [[1, 25]]
    assert latent_strengths(mask, 4).tolist() == [[1, 0, 66, 0], [0, 0, 1, 0]]


def test_a_prompt_counts_by_its_share_of_a_latents_edited_pixels() -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[:4, :16] = 255
    owners = np.zeros_like(mask)
    owners[:, 6:16] = 1
    owners[:2, 12:16] = 2
    weights = prompt_weights(owners, mask, 3, 4)
    assert weights[:, 0, :5].T.tolist() == [
        [1, 0, 0],
        [0.5, 0.5, 0],
        [0, 1, 0],
        [0, 0.5, 0.5],
        [1, 0, 0],
    ]
    assert (weights.sum(0) == 1).all()

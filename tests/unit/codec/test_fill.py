"""What the masked part of an edit starts from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.codec.fill import blurred, noise_like

RNG = np.random.default_rng(2)


@pytest.mark.parametrize("size", [(64, 96), (37, 53), (1, 9)])
def test_a_blur_leaves_the_rest_and_forgets_the_masked_part(size: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*size, 3), np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[size[0] // 3 : size[0] // 2 + 1, size[1] // 3 : size[1] // 2] = 255
    filled = blurred(image, mask)
    assert (filled[mask == 0] == image[mask == 0]).all()
    other = np.where(mask[..., None] > 0, 255 - image, image)
    assert (blurred(other, mask) == filled).all()


def test_a_blur_has_the_colours_around() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32], image[:, 32:] = (200, 0, 0), (0, 0, 100)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    image[16:48, 16:48] = 255
    filled = blurred(image, mask).astype(int)
    assert filled[..., 1].max() == 0
    assert (filled[32, 17] - (200, 0, 0)).max() < 60
    assert filled[32, 46, 2] > filled[32, 46, 0]
    middle = filled[32, 16:48, 0]
    assert (np.diff(middle) <= 0).all(), "from red to blue"


def test_a_picture_that_is_masked_as_a_whole_has_no_colours_around() -> None:
    image = RNG.integers(0, 256, (16, 16, 3), np.uint8)
    assert (blurred(image, np.full((16, 16), 255, np.uint8)) == image).all()


def test_noise_is_the_seeds_but_not_that_of_the_start() -> None:
    clean = torch.zeros(4, 32, 32)
    noise = noise_like(clean, 3)
    assert torch.equal(noise, noise_like(clean, 3))
    start = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(3))
    together = torch.stack([noise, noise_like(clean, 4), start]).flatten(1)
    assert (torch.corrcoef(together) - torch.eye(3)).abs().max() < 0.1
    assert noise.std() == pytest.approx(1, abs=0.1)

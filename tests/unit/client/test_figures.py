"""The figures of `tessera compare` against the benchmark's, which are OpenCV's."""

from __future__ import annotations

import numpy as np
import pytest

from bench import edit_quality
from tessera_build import similarity
from tessera_client.comparing import psnr, ssim

RNG = np.random.default_rng(5)


def test_figures_are_those_of_the_bench() -> None:
    one = RNG.integers(0, 256, (40, 56, 3), np.uint8)
    other = (one + RNG.integers(0, 30, one.shape)).clip(0, 255).astype(np.uint8)
    mask = np.zeros((40, 56), np.uint8)
    mask[0:20, 10:56] = 255
    assert ssim(one, other, mask) == pytest.approx(similarity.ssim(one, other, mask), abs=1e-3)
    assert psnr(one, other, mask) == pytest.approx(edit_quality.psnr(one, other, mask))
    assert ssim(one, one, mask) == pytest.approx(1)

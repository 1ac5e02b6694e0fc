"""The fade of a drawing: against neighbours looked at one by one, and bit-exact outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from tessera import feather
from tessera.feather import WIDEST, depth_inside, pasted, share_of_drawing, width_of


def cut(width: int, height: int, *, seed: int, holes: bool) -> Any:
    """Where some rectangles lie, with or without single pixels left out."""
    rng = np.random.default_rng(seed)
    inside = np.zeros((height, width), np.bool_)
    for _ in range(rng.integers(1, 4)):
        top, left = rng.integers(0, height), rng.integers(0, width)
        inside[top : top + rng.integers(1, 90), left : left + rng.integers(1, 90)] = True
    return inside & (rng.random(inside.shape) > 0.02) if holes else inside


def by_filters(inside: Any, width: int) -> tuple[Any, Any]:
    """Depth and share by a filter of 3 x 3 pixels, pixel by pixel."""
    core = Image.fromarray(inside.astype(np.uint8))
    depth = np.asarray(core).copy()
    for _ in range(width - 1):
        core = core.filter(ImageFilter.MinFilter(3))
        depth += np.asarray(core)
    deepest = Image.fromarray(depth)
    for _ in range(width - 1):
        deepest = deepest.filter(ImageFilter.MaxFilter(3))
    return depth, depth / np.maximum(np.asarray(deepest), 1)


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    seed=st.integers(0, 99),
    holes=st.booleans(),
    fade=st.integers(1, 60),
)
def test_depth_and_share_are_those_of_neighbours_one_by_one(
    width: int, height: int, seed: int, holes: bool, fade: int
) -> None:
    inside = cut(width, height, seed=seed, holes=holes)
    depth, share = by_filters(inside, fade)
    assert (depth_inside(inside, fade) == depth).all()
    assert (share_of_drawing(inside, fade) == share).all()


def test_the_widest_fade() -> None:
    inside = np.zeros((20, 600), np.bool_)
    inside[:, :560] = True
    row = share_of_drawing(inside, WIDEST)[7]
    assert (row[560:] == 0).all()
    assert (row[305:560] == np.arange(255, 0, -1) / 255).all()
    assert (row[:306] == 1).all()


@pytest.mark.parametrize("fade", [1, 4, 40])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_bands_do_not_show(rows: int, fade: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    picture, drawing = rng.integers(0, 256, (2, 150, 110, 3), np.uint8)
    inside = cut(110, 150, seed=6, holes=False)
    whole = pasted(drawing, picture, inside, fade)
    share = share_of_drawing(inside, fade)[..., None]
    assert (whole == (share * drawing + (1 - share) * picture).round()).all()
    assert (whole[~inside] == picture[~inside]).all()
    monkeypatch.setattr(feather, "_ROWS", rows)
    assert (pasted(drawing, picture, inside, fade) == whole).all()


def test_a_fade_is_as_wide_as_drawn_pixels_are() -> None:
    assert [width_of(4, factor) for factor in (0.1, 0.5, 1, 2.5, 128)] == [1, 2, 4, 10, WIDEST]

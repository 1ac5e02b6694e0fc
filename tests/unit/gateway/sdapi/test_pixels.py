"""Masks and sizes of img2img."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tessera_gateway.sdapi.edits import Edit
from tessera_gateway.sdapi.masks import read_mask
from tessera_gateway.sdapi.resizing import CROP, FILL, STRETCH, resized

LIGHT = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None], 4, 0))


@pytest.mark.parametrize("invert", [False, True])
def test_light_is_edited(invert: bool) -> None:
    mask = read_mask(LIGHT, invert=invert, blur=(0, 0))
    assert not mask.soft
    assert np.array_equal(mask.edited[0] == 255, (np.arange(256) >= 128) != invert)


def test_of_a_mask_with_transparency_what_is_opaque_is_edited() -> None:
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (1, 1, 3, 3))
    assert read_mask(picture, invert=False, blur=(0, 0)).edited.sum() == 4 * 255
    opaque = Image.new("RGBA", (4, 4), "white")
    assert read_mask(opaque, invert=False, blur=(0, 0)).edited.all()


def test_a_blur_reaches_a_few_pixels_beyond_the_mask() -> None:
    hard = Image.new("L", (64, 64))
    hard.paste(255, (24, 24, 40, 40))
    mask = read_mask(hard, invert=False, blur=(4, 0))
    rows, columns = np.flatnonzero(mask.edited.any(1)), np.flatnonzero(mask.edited.any(0))
    assert (rows[0], rows[-1]) == (24, 39)
    assert 24 - 3 * 4 <= columns[0] < 24 - 4
    assert np.asarray(mask.weight)[32, 32] > 200


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mode=st.sampled_from([STRETCH, CROP, FILL]),
)
def test_sizes(size: tuple[int, int], target: tuple[int, int], mode: int) -> None:
    for kind, colour in (("RGB", (9, 99, 199)), ("L", 77)):
        result = resized(Image.new(kind, size, colour), target, mode)
        assert result.size == target
        assert {c for _, c in result.getcolors() or []} == {colour}


def test_how_a_picture_gets_another_shape() -> None:
    halves = Image.new("L", (20, 10))
    halves.paste(255, (10, 0, 20, 10))
    assert np.asarray(resized(halves, (10, 10), STRETCH))[:, [0, 9]].tolist() == [[0, 255]] * 10
    assert np.asarray(resized(halves, (10, 20), FILL))[[0, 19]].tolist()[0][-1] == 255
    cut = np.asarray(resized(halves, (10, 10), CROP))
    assert cut[0].tolist() == [0] * 5 + [255] * 5


@pytest.mark.parametrize("blur", [0, 4])
def test_a_mask_is_resized_with_its_picture(blur: int) -> None:
    halves = Image.new("L", (20, 10))
    halves.paste(255, (10, 0, 20, 10))
    mask = read_mask(halves, invert=False, blur=(blur, blur)).resized((40, 10), STRETCH)
    assert mask.soft == (blur > 0)
    assert mask.weight.size == (40, 10)
    values = set(np.unique(np.asarray(mask.weight)))
    assert (values == {0, 255}) != mask.soft
    assert np.array_equal(mask.edited == 255, np.asarray(mask.weight) > 0)


def test_what_is_drawn_is_pasted_by_its_weight_and_nothing_else_changes() -> None:
    image = np.full((2, 4, 3), 100, np.uint8)
    weight = Image.fromarray(np.array([[0, 51, 255, 0]] * 2, np.uint8))
    drawn = Image.new("RGB", (4, 2), (200, 200, 200))
    soft = Edit(image, np.zeros((2, 4), np.uint8), weight=weight).finished(drawn)
    assert np.asarray(soft)[0, :, 0].tolist() == [100, 120, 200, 100]
    assert Edit(image, np.zeros((2, 4), np.uint8)).finished(drawn) is drawn

"""What is drawn of a picture, and how it is put back: against diffusers, and bit-exact outside the
mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tessera.requests.frames import (
    crop_region,
    cropped_frame,
    extended,
    filled_frame,
    working_size,
)

RNG = np.random.default_rng(7)
SIDES = st.integers(1, 90)


def pictures(width: int, height: int, square: tuple[float, float, float, float]) -> Any:
    """A picture, and a mask with a rectangle given in shares of the picture."""
    left, right = sorted(int(share * width) for share in square[::2])
    top, bottom = sorted(int(share * height) for share in square[1::2])
    mask = np.zeros((height, width), np.uint8)
    mask[top : bottom + 1, left : right + 1] = 255
    return RNG.integers(0, 256, (height, width, 3), np.uint8), mask


SQUARES = st.tuples(*[st.floats(0, 0.99)] * 4)


LINE = (0.0625, 0.921875, 0.921875, 0.921875)


DOT = (0.48, 0.33, 0.48, 0.32)


@example(width=59, height=77, square=LINE, padding=0, soft=False)  # half a pixel from both others
@example(width=8, height=22, square=DOT, padding=7, soft=False)  # enlarged by an eighth
@given(width=SIDES, height=SIDES, square=SQUARES, padding=st.integers(0, 40), soft=st.booleans())
def test_pixels_outside_the_mask_stay_in_every_frame(
    width: int, height: int, square: Any, padding: int, soft: bool
) -> None:
    image, mask = pictures(width, height, square)
    if soft:
        mask = np.where(mask > 0, RNG.integers(1, 256, mask.shape), 0).astype(np.uint8)
    edited = np.where(mask > 0, np.uint8(255), np.uint8(0))
    for frame in (
        filled_frame((width, height), 16),
        cropped_frame(edited, padding, (48, 48)),
        cropped_frame(edited, padding, working_size((width, height), 16, 64)),
    ):
        shown, drawn = frame.shown(image), frame.masked(mask, soft=soft)
        assert shown.shape == (*drawn.shape, 3) == (*frame.drawn[::-1], 3)
        assert all(side % 8 == 0 and side >= 16 for side in frame.drawn)
        assert (drawn > 0).any()
        result = frame.put_back(255 - shown, image, edited)
        assert result.shape == image.shape
        assert (result[edited == 0] == image[edited == 0]).all()


@given(width=SIDES, height=SIDES, square=SQUARES, padding=st.integers(0, 40))
def test_the_region_is_that_of_diffusers(
    width: int, height: int, square: Any, padding: int
) -> None:
    _, mask = pictures(width, height, square)
    for working in ((64, 64), (128, 64), (40, 72)):
        wanted = VaeImageProcessor.get_crop_region(Image.fromarray(mask), *working, pad=padding)
        assert crop_region(mask, padding, working) == wanted


def test_a_crop_is_what_diffusers_draws_of_it() -> None:
    image, mask = pictures(96, 96, (0.25, 0.25, 0.5, 0.45))
    frame = cropped_frame(mask, 8, (128, 128))
    processor = VaeImageProcessor(vae_scale_factor=8)
    crop = {"crops_coords": frame.box, "resize_mode": "fill"}
    wanted = processor.preprocess(Image.fromarray(image), 128, 128, **crop)[0]
    shown = frame.shown(image).astype(np.float32) / 255 * 2 - 1
    assert np.abs(shown - wanted.permute(1, 2, 0).numpy()).max() < 1e-5
    masks = VaeImageProcessor(
        vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    hard = masks.preprocess(Image.fromarray(mask), 128, 128, **crop)[0, 0]
    assert (frame.masked(mask, soft=False) == 255 * hard.numpy()).all()


def test_a_crop_comes_back_where_it_was() -> None:
    image = np.asarray(
        Image.fromarray(RNG.integers(0, 256, (12, 12, 3), np.uint8)).resize((96, 96))
    )
    mask = np.zeros((96, 96), np.uint8)
    mask[20:60, 30:80] = 255
    for working in ((128, 128), (64, 64), (136, 64)):
        frame = cropped_frame(mask, 8, working)
        result = frame.put_back(frame.shown(image), image, mask)
        assert np.abs(result.astype(np.int16) - image).max() <= 24


def test_a_small_mask_is_not_lost_in_a_smaller_picture() -> None:
    mask = np.zeros((900, 1200), np.uint8)
    mask[500, 700] = mask[20, 30] = 255
    frame = cropped_frame(mask, 0, (96, 96))
    assert (frame.masked(mask, soft=False) == 255).sum() >= 2
    assert (frame.masked(mask // 2, soft=True) > 0).sum() >= 2


def test_a_picture_is_filled_up_by_reflection() -> None:
    image, mask = pictures(21, 30, (0, 0, 0.9, 0.9))
    frame = filled_frame((21, 30), 16)
    shown = frame.shown(image)
    assert frame.drawn == (24, 32)
    assert (shown[:30, 21:] == image[:, :-4:-1]).all()
    assert (frame.masked(mask, soft=False)[:30, 21:] == mask[:, :-4:-1]).all()


def test_room_around_a_picture_is_edited_and_shows_the_picture_mirrored() -> None:
    image, mask = pictures(16, 24, (0.2, 0.2, 0.3, 0.3))
    larger, (where, other) = extended(image, np.stack([mask, mask]), (8, 0, 4, 2))
    assert (other.sum(), other[:24, 8:24].sum()) == (mask.sum(), mask.sum())
    assert larger.shape == (26, 28, 3)
    assert (larger[:24, 8:24] == image).all()
    assert (larger[:24, :8] == image[:, 7::-1]).all()
    assert (where[:24, 8:24] == mask).all()
    assert (where[:, :8] == 255).all()
    assert (where[24:] == 255).all()


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((128, 96), (128, 96)), ((100, 70), (96, 64)), ((4000, 3000), (256, 192)), ((9, 9), (64, 64))],
)
def test_a_crop_is_drawn_in_the_pictures_shape(size: Any, wanted: Any) -> None:
    assert working_size(size, 64, 256) == wanted

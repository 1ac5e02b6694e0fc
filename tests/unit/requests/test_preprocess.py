"""What becomes of the images that guide ControlNets, against OpenCV."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tessera import contract
from tessera.requests.preprocess import PREPROCESSORS, RESIZES, Preparation

SIDES = st.integers(1, 200)


def noise(width: int, height: int) -> Any:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


def test_the_contract_names_what_there_is() -> None:
    assert tuple(PREPROCESSORS) == contract.PREPROCESSORS
    assert tuple(RESIZES) == contract.RESIZES


def test_opencv_is_not_loaded_before_it_is_needed() -> None:
    code = (
        "import sys; import tessera.requests.controls as module; module.prepared((), 64, 64); "
        "print('cv2' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_ready_image_stays_as_it_is() -> None:
    image = noise(96, 64)
    assert (Preparation().apply(image, 96, 64) == image).all()


def test_canny_is_opencvs_with_the_thresholds_given() -> None:
    image = cv2.GaussianBlur(noise(96, 64), (0, 0), 1)
    seen = []
    for preparation, thresholds in (
        (Preparation("canny"), (100, 200)),
        (Preparation("canny", low=30, high=60), (30, 60)),
    ):
        made = preparation.apply(image, 96, 64)
        assert (made == cv2.Canny(image, *thresholds)[..., None]).all()
        assert made.shape == image.shape
        assert set(np.unique(made)) == {0, 255}
        seen.append(made.sum())
    assert seen[0] < seen[1]


def test_grey_is_opencvs_and_invert_the_negative() -> None:
    image = noise(96, 64)
    grey = Preparation("grey").apply(image, 96, 64)
    assert (grey == cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]).all()
    negative = Preparation("invert").apply(image, 96, 64)
    assert negative.dtype == np.uint8
    assert (negative.astype(int) + image == 255).all()


@given(w=SIDES, h=SIDES, width=SIDES, height=SIDES, resize=st.sampled_from(contract.RESIZES[1:]))
@example(w=2, h=1, width=3, height=150, resize="stretch")
def test_every_image_gets_the_pictures_size(
    w: int, h: int, width: int, height: int, resize: str
) -> None:
    white = np.full((h, w, 3), 255, np.uint8)
    made = Preparation(resize=resize).apply(white, width, height)
    assert made.shape == (height, width, 3)
    rows, columns = np.nonzero(made[..., 0])
    top, left = rows.min(), columns.min()
    bottom, right = height - 1 - rows.max(), width - 1 - columns.max()
    # OpenCV's Lanczos weights for bytes do not always add up to one: it makes some white 254.
    assert (made[top : height - bottom, left : width - right] >= 254).all()
    if resize != "fit":
        assert (top, left, bottom, right) == (0, 0, 0, 0)
        return
    assert (top, left) == (0, 0) or (top == bottom == 0) or (left == right == 0)
    assert 0 <= bottom - top <= 1
    assert 0 <= right - left <= 1
    scale = min(width / w, height / h)
    assert abs(width - left - right - max(1, w * scale)) <= 0.5
    assert abs(height - top - bottom - max(1, h * scale)) <= 0.5


@pytest.mark.parametrize(
    ("size", "how"),
    [((48, 32), cv2.INTER_AREA), ((192, 128), cv2.INTER_LANCZOS4)],
    ids=["smaller", "larger"],
)
def test_stretching_averages_or_takes_lanczos(size: tuple[int, int], how: int) -> None:
    image = noise(96, 64)
    made = Preparation(resize="stretch").apply(image, *size)
    assert (made == cv2.resize(image, size, interpolation=how)).all()


def test_each_axis_goes_its_own_way() -> None:
    image = noise(96, 64)
    made = Preparation(resize="stretch").apply(image, 48, 128)
    narrow = cv2.resize(image, (48, 64), interpolation=cv2.INTER_AREA)
    assert (made == cv2.resize(narrow, (48, 128), interpolation=cv2.INTER_LANCZOS4)).all()


@pytest.mark.parametrize("wide", [True, False], ids=["wide", "tall"])
def test_fill_cuts_to_the_middle(wide: bool) -> None:
    image = noise(120, 40) if wide else noise(40, 120)
    middle = image[:, 40:80] if wide else image[40:80]
    assert (Preparation(resize="fill").apply(image, 40, 40) == middle).all()
    larger = cv2.resize(middle, (80, 80), interpolation=cv2.INTER_LANCZOS4)
    assert (Preparation(resize="fill").apply(image, 80, 80) == larger).all()


@pytest.mark.parametrize("preprocess", contract.PREPROCESSORS)
def test_the_bars_that_fit_leaves_are_black(preprocess: str) -> None:
    image = noise(60, 40)
    made = Preparation(preprocess, "fit").apply(image, 60, 80)
    alone = Preparation(preprocess).apply(image, 60, 40)
    assert (made[20:60] == alone).all()
    assert not made[:20].any()
    assert not made[60:].any()


def test_long_images_cost_no_memory() -> None:
    line = np.full((1, contract.MAX_CONTROL_SIDE, 3), 9, np.uint8)
    for resize in contract.RESIZES[1:]:
        assert Preparation(resize=resize).apply(line, 64, 64).shape == (64, 64, 3)


def test_images_that_may_not_be_written_to() -> None:
    image = noise(60, 40)
    image.flags.writeable = False
    for preprocess in contract.PREPROCESSORS:
        for resize in contract.RESIZES[1:]:
            assert Preparation(preprocess, resize).apply(image, 64, 64).any()


def test_what_is_done_is_reported() -> None:
    assert Preparation().report == {}
    assert Preparation("grey", "fill").report == {"preprocess": "grey", "resize": "fill"}
    assert Preparation("canny", low=5.0).report == {
        "preprocess": "canny",
        "low": 5.0,
        "high": 200.0,
    }

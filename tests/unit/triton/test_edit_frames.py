"""`edit` with pictures of any size, crops, room around them, and without a mask."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.shared.board import Board
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import message
from tests.samples.requests import inputs

RNG = np.random.default_rng(4)


def asked(width: int, height: int, **values: Any) -> dict[str, Any]:
    """Inputs of an edit of a picture of noise. Values are as the tensors have them."""
    given = inputs(STEPS=2, SEED=5)
    given["IMAGE"] = RNG.integers(0, 256, (1, height, width, 3), np.uint8)
    given["MASK"] = np.zeros((1, height, width), np.uint8)
    given["MASK"][0, height // 4 : height // 2 + 1, width // 3 : width // 2 + 1] = 255
    kinds: dict[str, Any] = {"EXTEND": np.int32, "PADDING_MASK_CROP": np.int32}
    kinds |= {"STRENGTH": np.float32, "WIDTH": np.int32, "HEIGHT": np.int32}
    kinds |= {"MASK_FEATHER": np.int32}
    for name, value in values.items():
        array = value if isinstance(value, np.ndarray) else np.array([value], kinds.get(name))
        given[name] = array.reshape(1, -1) if name in kinds else array
    return {name: array for name, array in given.items() if array is not None}


def answer(models: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    response = models["edit"].execute([pb_utils.Request(**arrays)])[0]
    assert response.error is None, response.error
    found = response.arrays()
    return found["IMAGE"][0], json.loads(found["INFO"][0, 0])


TEXT = {kind: np.array([[kind.encode()]], object) for kind in ("soft", "hard", "drawn", "matched")}


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(st.integers(9, 140), st.integers(9, 140)),
    padding=st.none() | st.integers(0, 30),
    kind=st.sampled_from(["soft", "hard"]),
    extend=st.none() | st.tuples(*[st.integers(0, 20)] * 3, st.integers(1, 20)),
    feather=st.none() | st.integers(1, 128),
    tone=st.none() | st.sampled_from(["drawn", "matched"]),
)
def test_pixels_outside_the_mask_stay_bit_for_bit(
    models: dict[str, Any],
    size: Any,
    padding: int | None,
    kind: str,
    extend: Any,
    feather: int | None,
    tone: str | None,
) -> None:
    values: dict[str, Any] = {"MASK_KIND": TEXT[kind]}
    values |= {} if feather is None else {"MASK_FEATHER": feather}
    values |= {} if tone is None else {"MASK_TONE": TEXT[tone]}
    values |= {} if padding is None else {"PADDING_MASK_CROP": padding}
    values |= {} if extend is None else {"EXTEND": extend}
    arrays = asked(*size, **values)
    left, top, right, bottom = extend or (0, 0, 0, 0)
    image, outside = arrays["IMAGE"][0], arrays["MASK"][0] == 0
    drawn, info = answer(models, arrays)
    assert drawn.shape == (size[1] + top + bottom, size[0] + left + right, 3)
    middle = drawn[top : top + size[1], left : left + size[0]]
    assert (middle[outside] == image[outside]).all()
    assert (middle != image).any()
    assert info["width"] % 8 == info["height"] % 8 == 0


def test_a_whole_picture_is_edited_without_a_mask(models: dict[str, Any]) -> None:
    arrays = asked(96, 64, STRENGTH=0.5)
    del arrays["MASK"]
    drawn, info = answer(models, arrays)
    masked = arrays | {"MASK": np.full((1, 64, 96), 255, np.uint8)}
    assert (drawn == answer(models, masked)[0]).all()
    assert (info["mask_ratio"], info["ticks"], info["frame"]) == (1.0, 1, None)


def test_an_edit_of_an_odd_size_does_not_fade_at_the_pictures_edge(models: dict[str, Any]) -> None:
    arrays = asked(93, 67, MASK=np.full((1, 67, 93), 255, np.uint8))
    drawn, info = answer(models, arrays)
    assert info["mask_ratio"] == 1.0
    changed = (drawn != arrays["IMAGE"][0]).any(-1)
    assert changed[:, -1].mean() > 0.9
    assert changed[-1].mean() > 0.9


def test_a_template_of_an_odd_size_is_known_by_its_id(sparse_models: dict[str, Any]) -> None:
    arrays = asked(90, 70)
    drawn, info = answer(sparse_models, arrays)
    assert info["frame"] == {"box": [0, 0, 90, 70], "scaled": [90, 70]}
    assert (info["width"], info["height"]) == (96, 72)
    again = {name: array for name, array in arrays.items() if name != "IMAGE"}
    again["TEMPLATE"] = np.array([[info["template"].encode()]], object)
    repeated, _ = answer(sparse_models, again)
    assert (repeated == drawn).all()
    registered = {"ACTION": np.array([[b"register"]], object), "IMAGE": arrays["IMAGE"]}
    response = sparse_models["templates"].execute([pb_utils.Request(**registered)])[0]
    assert json.loads(response.arrays()["RESULT"][0, 0])["template"] == info["template"]


def test_a_template_may_be_cropped_and_extended(sparse_models: dict[str, Any]) -> None:
    arrays = asked(96, 72)
    _, info = answer(sparse_models, arrays)
    known = np.array([[info["template"].encode()]], object)
    for values in ({"PADDING_MASK_CROP": 4}, {"EXTEND": (8, 0, 0, 16)}):
        given = asked(96, 72, **values) | {"IMAGE": arrays["IMAGE"], "MASK": arrays["MASK"]}
        whole, _ = answer(sparse_models, given)
        del given["IMAGE"]
        assert (answer(sparse_models, given | {"TEMPLATE": known})[0] == whole).all()


def test_a_template_of_an_odd_size_may_be_cropped_and_extended(
    sparse_models: dict[str, Any],
) -> None:
    arrays = asked(90, 70)
    _, info = answer(sparse_models, arrays)
    known = np.array([[info["template"].encode()]], object)
    for values in ({"PADDING_MASK_CROP": 4}, {"EXTEND": (8, 0, 0, 16)}):
        given = asked(90, 70, **values) | {"IMAGE": arrays["IMAGE"], "MASK": arrays["MASK"]}
        whole, _ = answer(sparse_models, given)
        del given["IMAGE"]
        assert (answer(sparse_models, given | {"TEMPLATE": known})[0] == whole).all()
    del arrays["IMAGE"], arrays["MASK"]
    drawn, _ = answer(
        sparse_models, arrays | {"TEMPLATE": known, "STRENGTH": np.ones((1, 1), np.float32)}
    )
    assert drawn.shape == (72, 96, 3), "nothing says that it was smaller"


def test_a_whole_picture_counts_although_only_a_part_is_drawn(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where requests are admitted, and where they are not yet."""
    held: list[int] = []
    board = models["encode"]._board

    def opened(*arguments: Any, **options: Any) -> Any:
        held.append(options["held"])
        return Board.open(board, *arguments, **options)

    monkeypatch.setattr(board, "open", opened)
    arrays = asked(500, 400, PADDING_MASK_CROP=10, WIDTH=64, HEIGHT=64)
    answer(models, arrays)
    assert held[0] > 14 * 500 * 400
    models["encode"].execute([pb_utils.Request(**inputs())])  # is not ended
    monkeypatch.setattr(models["edit"], "_held", 1)
    said, code = message(models["edit"].execute([pb_utils.Request(**arrays)])[0])
    assert said.startswith("requests under way hold")
    assert code == pb_utils.TritonError.UNAVAILABLE
    assert len(held) == 2


def test_what_others_say_that_they_hold_does_not_count(models: dict[str, Any]) -> None:
    first = pb_utils.Request(parameters={"held": 10**15}, **inputs())
    assert models["encode"].execute([first])[0].error is None
    assert models["encode"].execute([pb_utils.Request(**inputs())])[0].error is None


def test_a_crop_says_what_was_drawn(models: dict[str, Any]) -> None:
    arrays = asked(500, 400, PADDING_MASK_CROP=10, WIDTH=64, HEIGHT=128)
    drawn, info = answer(models, arrays)
    assert drawn.shape == (400, 500, 3)
    left, top, right, bottom = info["frame"]["box"]
    assert (right - left) * 2 == pytest.approx(bottom - top, abs=2)
    assert (info["width"], info["height"]) == (64, 128)


def regions(count: int = 2, prompts: int | None = None, **changes: Any) -> dict[str, Any]:
    """Inputs of so many regions of a picture of 91 x 70 pixels."""
    masks = np.zeros((1, count, 70, 91), np.uint8)
    masks[:, :, 5:20, 60:80] = 255
    texts = [f"a star {number}".encode() for number in range(count if prompts is None else prompts)]
    return {"REGION_MASKS": masks, "REGION_PROMPTS": np.array([texts], object)} | changes


@pytest.mark.parametrize("padding", [None, 6])
def test_regions_are_edited_too(models: dict[str, Any], padding: int | None) -> None:
    crop = {} if padding is None else {"PADDING_MASK_CROP": padding}
    arrays = asked(91, 70, **regions(), **crop)
    drawn, info = answer(models, arrays)
    edited = (arrays["MASK"][0] > 0) | (arrays["REGION_MASKS"][0, 0] > 0)
    assert (drawn[~edited] == arrays["IMAGE"][0][~edited]).all()
    assert (drawn[5:20, 60:80] != arrays["IMAGE"][0][5:20, 60:80]).any()
    assert (info["regions"], info["prompt_chunks"]) == (2, 1)


TOO_MUCH = 8193
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "kind": (
        {"MASK_KIND": np.array([[b"half"]], object)},
        "MASK_KIND is 'half'; accepted: hard",
    ),
    "fill": ({"MASK_FILL": TEXT["soft"]}, "MASK_FILL is 'soft'; accepted: original, blur, noise"),
    "fill of a soft mask": (
        {"MASK_FILL": np.array([[b"blur"]], object), "MASK_KIND": TEXT["soft"]},
        "MASK_FILL is 'blur'; accepted: original, since MASK_KIND is soft",
    ),
    "fewer masks": (
        regions(2, prompts=3),
        "REGION_MASKS has 2 masks; accepted: one mask for each of REGION_PROMPTS, which has 3",
    ),
    "regions without prompts": (
        {"REGION_MASKS": regions(1)["REGION_MASKS"]},
        "REGION_MASKS has 1 mask; accepted: one mask for each of REGION_PROMPTS, which has none",
    ),
    "prompts without regions": (
        {"REGION_PROMPTS": regions(1)["REGION_PROMPTS"]},
        "REGION_MASKS has 0 masks; accepted: one mask for each of REGION_PROMPTS, which has 1",
    ),
    "many regions": (regions(8), "REGION_MASKS has 8 masks; accepted: at most 7"),
    "a region of nothing": (
        regions(2, REGION_MASKS=np.zeros((1, 2, 70, 91), np.uint8)),
        "REGION_MASKS[0] has no pixel of 128 or more; accepted: 128 to 255",
    ),
    "a region of another size": (
        regions(1, REGION_MASKS=np.ones((1, 1, 70, 90), np.uint8)),
        "REGION_MASKS[0] has 90 x 70 pixels; accepted: the size of the image, 91 x 70",
    ),
    "a region without words": (
        regions(1, REGION_PROMPTS=np.array([[b" "]], object)),
        "REGION_PROMPTS[0] is ' '; accepted: 1 to 2000 characters",
    ),
    "padding": ({"PADDING_MASK_CROP": -1}, "PADDING_MASK_CROP is -1; accepted: pixels around the"),
    "much padding": ({"PADDING_MASK_CROP": TOO_MUCH}, "PADDING_MASK_CROP is 8193; accepted:"),
    "working size": (
        {"PADDING_MASK_CROP": 0, "WIDTH": 60},
        "WIDTH is 60; accepted: a multiple of 8 from 64 to 256",
    ),
    "no room": ({"EXTEND": (0, 0, 0, 0)}, "EXTEND is '0, 0, 0, 0'; accepted: pixels at the left"),
    "less room": ({"EXTEND": (0, -8, 0, 8)}, "EXTEND is '0, -8, 0, 8'; accepted: pixels at the"),
    "too much room": (
        {"EXTEND": (200, 0, 0, 0)},
        "IMAGE has 91 x 70 pixels, with EXTEND 291 x 70; accepted: sides of 1 to 256 pixels, or",
    ),
    "another width": ({"WIDTH": 96}, "WIDTH is 96; accepted: the image's own, 91, or nothing"),
    "a mask of nothing": (
        {"MASK": np.zeros((1, 70, 91), np.uint8), "MASK_KIND": TEXT["soft"]},
        "MASK has no pixel of 1 or more; accepted: 1 to 255 where the image is edited",
    ),
    "a mask of another size": (
        {"MASK": np.full((1, 70, 96), 255, np.uint8), "PADDING_MASK_CROP": 3},
        "MASK has 96 x 70 pixels; accepted: the size of the image, 91 x 70 pixels",
    ),
    "no pixels": (
        {"IMAGE": np.zeros((1, 0, 91, 3), np.uint8), "PADDING_MASK_CROP": 3},
        "IMAGE has 91 x 0 pixels; accepted: sides of 1 to 8192 pixels",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_values_are_named(models: dict[str, Any], values: Any, sentence: str) -> None:
    said, code = message(models["edit"].execute([pb_utils.Request(**asked(91, 70, **values))])[0])
    assert said.startswith(sentence)
    assert code == pb_utils.TritonError.INVALID_ARG

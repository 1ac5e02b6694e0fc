"""What the models behind `edit` get of a request that they would not take as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tessera.errors import InvalidInput, Unavailable
from tessera.requests.edit import no_templates
from tessera.requests.framing import filled_up, framed, needs_framing
from tests.samples.requests import MANIFEST, inputs

RNG = np.random.default_rng(8)


def asked(width: int, height: int, **more: Any) -> dict[str, Any]:
    image = RNG.integers(0, 256, (1, height, width, 3), np.uint8)
    mask = np.full((1, height, width), 255, np.uint8)
    return inputs() | {"IMAGE": image, "MASK": mask} | more


@pytest.mark.parametrize(
    ("width", "height", "more", "wanted"),
    [
        (128, 96, {}, False),
        (256, 64, {}, False),
        (130, 96, {}, True),
        (56, 96, {}, True),
        (264, 96, {}, True),
        (128, 96, {"PADDING_MASK_CROP": np.array([[0]], np.int32)}, True),
        (128, 96, {"MASK_KIND": np.array([[b"soft"]], object)}, True),
    ],
    ids=["usual", "largest", "odd", "small", "large", "crop", "soft"],
)
def test_most_edits_are_handed_on_untouched(
    width: int, height: int, more: Any, wanted: bool
) -> None:
    assert needs_framing(asked(width, height, **more), MANIFEST.limits) == wanted


def test_images_of_controlnets_show_what_is_drawn_of_the_picture() -> None:
    given = asked(91, 70)
    given["CONTROL_IMAGES"] = given["IMAGE"][None].repeat(2, 1)
    found = framed(given, MANIFEST, no_templates).inputs
    assert found["CONTROL_IMAGES"].shape == (1, 2, 72, 96, 3)
    assert (found["CONTROL_IMAGES"][0, 1] == found["IMAGE"][0]).all()


def test_an_image_of_another_size_is_left_to_its_own_resize() -> None:
    given = asked(91, 70, CONTROL_IMAGES=np.zeros((1, 1, 64, 64, 3), np.uint8))
    assert "CONTROL_IMAGES" not in framed(given, MANIFEST, no_templates).inputs


def test_a_crop_takes_the_width_and_height_for_itself() -> None:
    given = asked(300, 200, PADDING_MASK_CROP=np.array([[4]], np.int32))
    given |= {"WIDTH": np.array([[128]], np.int32), "HEIGHT": np.array([[64]], np.int32)}
    found = framed(given, MANIFEST, no_templates)
    assert found.inputs["IMAGE"].shape == (1, 64, 128, 3)
    assert {"WIDTH", "HEIGHT", "PADDING_MASK_CROP"} <= set(found.dropped)


def test_control_images_of_a_registration_are_filled_up_with_its_picture() -> None:
    """So that they are those of an edit of the same picture."""
    asking = asked(130, 96)
    images = RNG.integers(0, 256, (1, 1, 96, 130, 3), np.uint8)
    registered = filled_up(asking | {"CONTROL_IMAGES": images}, MANIFEST.limits)
    edited = framed(asking | {"CONTROL_IMAGES": images}, MANIFEST, no_templates)
    assert registered["CONTROL_IMAGES"].shape == (1, 1, 96, 136, 3)
    for name in ("IMAGE", "CONTROL_IMAGES"):
        assert (registered[name] == edited.inputs[name]).all()


@pytest.mark.parametrize(("feather", "width"), [(None, 2), (1, 1), (2, 1), (4, 2), (128, 2)])
def test_a_crop_fades_over_no_more_than_the_feather(feather: int | None, width: int) -> None:
    """The drawing comes with its own fade; this one has only the border of the crop."""
    given = asked(256, 256, PADDING_MASK_CROP=np.array([[14]], np.int32))
    given["IMAGE"][:] = given["MASK"][:] = 0
    given["MASK"][0, 90:190, 70:170] = 255
    if feather is not None:
        given["MASK_FEATHER"] = np.array([[feather]], np.int32)
    found = framed(given, MANIFEST, no_templates)
    assert found.report == {"box": [56, 76, 184, 204], "scaled": [256, 256]}
    row = found.answer(np.full((256, 256, 3), 255, np.uint8))[140, 70:120, 0]
    assert list(row[:width]) == [round(255 * (i + 1) / width) for i in range(width)]
    assert (row[width:] == 255).all()


CROP: dict[str, Any] = {"PADDING_MASK_CROP": np.array([[4]], np.int32)}
ROOM: dict[str, Any] = {"EXTEND": np.array([[0, 0, 6, 9]], np.int32)}


@pytest.mark.parametrize("more", [CROP, ROOM, CROP | ROOM], ids=["crop", "room", "both"])
def test_a_mask_says_what_size_a_template_had_before_it_was_filled_up(more: Any) -> None:
    given = asked(130, 92, **more)
    template = filled_up(given, MANIFEST.limits)["IMAGE"][0]
    assert template.shape == (96, 136, 3)
    known = {name: array for name, array in given.items() if name != "IMAGE"}
    known |= {"TEMPLATE": np.array([[b"it"]], object)}
    wanted = framed(given, MANIFEST, no_templates)
    found = framed(known, MANIFEST, lambda identity: template)
    assert (found.inputs["IMAGE"] == wanted.inputs["IMAGE"]).all()
    assert (found.inputs["MASK"] == wanted.inputs["MASK"]).all()
    assert (found.edited == wanted.edited).all()
    drawing = 255 - found.inputs["IMAGE"][0]
    assert (found.answer(drawing) == wanted.answer(drawing)).all()


@pytest.mark.parametrize("size", [(0, 0), (128, 96), (130, 88), (137, 96)])
def test_a_mask_of_another_size_than_a_templates_is_refused(size: tuple[int, int]) -> None:
    template = filled_up(asked(130, 92), MANIFEST.limits)["IMAGE"][0]
    given = asked(*size, **CROP, TEMPLATE=np.array([[b"it"]], object))
    del given["IMAGE"]
    with pytest.raises(InvalidInput, match="accepted: the size of the image, 136 x 96 pixels"):
        framed(given, MANIFEST, lambda identity: template)


def test_memory_is_that_of_the_whole_picture_and_is_asked_for_first() -> None:
    asked_for: list[int] = []

    def refuse(held: int) -> None:
        asked_for.append(held)
        raise Unavailable("no room")

    given = asked(3000, 2000, **CROP) | ROOM
    with pytest.raises(Unavailable, match="no room"):
        framed(given, MANIFEST, no_templates, refuse)
    brought = sum(array.nbytes for array in given.values())
    assert asked_for == [brought + 10 * 3006 * 2009]
    assert framed(given, MANIFEST, no_templates).held == asked_for[0]

"""What a real server says to ControlNets and their images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tessera.errors import InvalidInput
from tessera_client import Client, Control

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
SIZE: dict[str, Any] = {"width": 96, "height": 64, "steps": 2, "seed": 1}


def test_info_says_which_controlnets_and_what_became_of_their_images(client: Client) -> None:
    controls = [
        Control("edges", IMAGE[:40], scale=0.5, end=0.5, preprocess="canny", low=50, resize="fit"),
        Control("edges", IMAGE[:40], start=0.5, resize="fill"),
    ]
    said = [
        {"name": "edges", "scale": 0.5, "start": 0.0, "end": 0.5}
        | {"preprocess": "canny", "low": 50.0, "high": 200.0, "resize": "fit"},
        {"name": "edges", "scale": 1.0, "start": 0.5, "end": 1.0, "resize": "fill"},
    ]
    assert client.generate("a", controls=controls, **SIZE).info.controls == said
    edited = client.edit(IMAGE, (8, 8, 32, 32), "a", controls=controls, steps=2)
    assert edited.info.controls == said
    assert client.generate("a", **SIZE).info.controls == []


BAD: dict[str, tuple[list[Control], str]] = {
    "name": (
        [Control("edge", IMAGE)],
        "CONTROLS[0].name is 'edge'; accepted: one of the 2 installed ControlNets; close: edges",
    ),
    "window": ([Control("edges", IMAGE, start=0.5, end=0.5)], "CONTROLS[0].start is 0.5; accepted"),
    "scale": ([Control("edges", IMAGE, scale=float("nan"))], "CONTROLS[0].scale is nan"),
    "preprocess": (
        [Control("edges", IMAGE, preprocess="depth")],
        "CONTROLS[0].preprocess is 'depth'; accepted: none, canny, grey, invert",
    ),
    "size": (
        [Control("edges", IMAGE[:, :64])],
        "CONTROL_IMAGES has 64 x 64 pixels; accepted: the picture's size, 96 x 64 pixels, or",
    ),
}


@pytest.mark.parametrize(("controls", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_values_are_answered_with_field_value_and_what_is_accepted(
    client: Client, controls: list[Control], sentence: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        client.generate("a", controls=controls, **SIZE)
    assert sentence in str(caught.value)
    with pytest.raises(InvalidInput) as caught:
        client.edit(IMAGE, (8, 8, 32, 32), "a", controls=controls)
    assert sentence in str(caught.value)


def test_what_an_edits_mask_hides_from_a_controlnet_does_not_matter(client: Client) -> None:
    mask = np.zeros(IMAGE.shape[:2], np.uint8)
    mask[16:40, 24:72] = 255
    inside, outside = IMAGE.copy(), IMAGE.copy()
    inside[mask > 0] = 255 - inside[mask > 0]
    outside[mask == 0] = 255 - outside[mask == 0]
    pictures = [
        client.edit(
            IMAGE,
            mask,
            "a star",
            steps=3,
            seed=1,
            mode="dense",
            controls=[Control("edges", image, preprocess="inpaint")],
        )
        for image in (IMAGE, inside, outside)
    ]
    assert pictures[0].info.controls[0]["preprocess"] == "inpaint"
    first, same, other = (np.asarray(picture.image, np.int16) for picture in pictures)
    assert np.array_equal(first, same)
    assert np.abs(first - other).max() > 5
    with pytest.raises(InvalidInput, match="'inpaint'; accepted: another word, unless"):
        client.generate("a", controls=[Control("edges", IMAGE, preprocess="inpaint")], **SIZE)

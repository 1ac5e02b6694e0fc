"""What a request is on the wire."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tessera_client import Control, Lora
from tessera_client.orders import generation


def test_types_and_shapes_on_the_wire() -> None:
    picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    wish = generation(
        "é",
        {
            "steps": 3,
            "guidance": 2.5,
            "loras": [Lora("a", 0.5), Lora("b", text_weight=0.1)],
            "controls": [
                Control("edges", picture, end=0.5),
                Control("depth", Image.fromarray(picture), preprocess="canny", low=5.0),
            ],
        },
    )
    arrays = wish.order("j").call.inputs
    assert arrays["PROMPT"][0, 0] == "é".encode()
    assert arrays["STEPS"].dtype == np.int32
    assert arrays["GUIDANCE"].dtype == np.float32
    assert (arrays["CONTROL_IMAGES"] == np.stack([picture, picture])[None]).all()
    assert arrays["CONTROL_IMAGES"].dtype == np.uint8
    assert json.loads(arrays["LORAS"][0, 0]) == [
        {"name": "a", "weight": 0.5},
        {"name": "b", "weight": 1.0, "text_weight": 0.1},
    ]
    window = {"scale": 1.0, "start": 0.0}
    assert json.loads(arrays["CONTROLS"][0, 0]) == [
        {"name": "edges", **window, "end": 0.5},
        {"name": "depth", **window, "end": 1.0, "preprocess": "canny", "low": 5.0},
    ]
    assert {a.shape[0] for a in arrays.values()} == {1}


def test_without_controlnets_nothing_is_sent_of_them() -> None:
    assert set(generation("a", {"controls": []}).order("j").call.inputs) == {"PROMPT", "JOB_ID"}


@pytest.mark.parametrize(
    ("images", "kind", "sentence"),
    [
        ([(64, 48), (32, 48), (64, 48)], ValueError, "these have 48 x 32 and 48 x 64 pixels"),
        ([(64, 48, 1)], TypeError, r"controls\[0\].image is an array \(64, 48, 1, 3\)"),
    ],
    ids=["sizes", "shape"],
)
def test_images_of_controlnets_that_cannot_be_sent(
    images: list[tuple[int, ...]], kind: type[Exception], sentence: str
) -> None:
    controls = [Control("edges", np.zeros((*size, 3), np.uint8)) for size in images]
    with pytest.raises(kind, match=sentence):
        generation("a", {"controls": controls}).order("j")

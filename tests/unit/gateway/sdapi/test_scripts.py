"""Units of ControlNets as sd-webui-controlnet has them -> controls of Tessera's."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from tessera_client import Control
from tessera_gateway.errors import ApiError
from tessera_gateway.pictures import base64_of, encode
from tessera_gateway.sdapi.scripts import read_controls

PICTURE = Image.new("RGB", (8, 8))


def control(**unit: Any) -> Control:
    scripts = {"controlnet": {"args": [{"model": "edges", **unit}]}}
    (found,) = read_controls(scripts, lambda text, field: PICTURE, PICTURE)
    return found


@pytest.mark.parametrize(
    ("mode", "guesses"),
    [(0, False), ("Balanced", False), (2, True), ("ControlNet is more important", True)],
)
def test_who_is_more_important(mode: int | str, guesses: bool) -> None:
    assert control(control_mode=mode).guess_mode is guesses


@pytest.mark.parametrize("mode", [1, "My prompt is more important", "x"])
def test_modes_that_are_not_there(mode: int | str) -> None:
    with pytest.raises(ApiError, match=r"control_mode is .*; accepted: Balanced, ControlNet is mo"):
        control(control_mode=mode)


def test_kinds_of_a_union() -> None:
    kinds = ["OpenPose", "Depth", "Soft Edge", "Hard Edge", "Normal Map", "Segmentation"]
    modes = ["openpose", "depth", "hed", "canny", "normal", "segment"]
    assert [control(union_control_type=kind).mode for kind in kinds] == modes
    assert control(union_control_type="Unknown").mode is None
    assert control().mode is None


def test_an_answer_repeats_units_without_their_pictures(http: TestClient) -> None:
    sent = base64_of(encode(PICTURE))
    units: list[dict[str, Any]] = [
        {"model": "edges", "weight": 0.5, "image": sent},
        {"model": "edges", "input_image": {"image": sent}, "own": "field"},
        {"enabled": False, "mask": sent, "mask_image": sent, "effective_region_mask": sent},
    ]
    body = {"prompt": "x", "alwayson_scripts": {"ControlNet": {"args": units}}}
    answer = http.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"]["alwayson_scripts"]["ControlNet"]["args"] == [
        {"model": "edges", "weight": 0.5},
        {"model": "edges", "own": "field"},
        {"enabled": False},
    ]
    assert sent not in answer.text


def test_an_inpainting_unit() -> None:
    assert control(module="inpaint_only").preprocess == "inpaint"

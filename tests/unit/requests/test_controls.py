"""CONTROLS and CONTROL_IMAGES: what is accepted, what is not, and when a ControlNet is active."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from hypothesis import given
from hypothesis import strategies as st

from tessera import contract
from tessera.contract import MAX_CONTROL_SIDE
from tessera.errors import InvalidInput
from tessera.manifest import ControlKind, Graph
from tessera.plan import ControlUse, Plan
from tessera.requests.controls import prepared
from tessera.requests.request import Request, read_request
from tests.samples.requests import MANIFEST, inputs

GRAPHS = [
    f"controlnet_{name}{part}" for name in ("edges", "depth", "all") for part in ("", "_hint")
]
WITH_CONTROLS = dataclasses.replace(
    MANIFEST,
    graphs={name: Graph("a.onnx", "config.json") for name in GRAPHS},
    control_kinds={"all": ControlKind(modes=6), "depth": ControlKind(pooled=True)},
)
IMAGE = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)


def read(controls: Any = (), images: Any = None, **values: Any) -> Request:
    """A request with these elements of CONTROLS, and by default one image for each."""
    arrays = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
    plain = {k: v for k, v in values.items() if k not in arrays}
    text = controls if isinstance(controls, str) else json.dumps(list(controls))
    given = inputs(CONTROLS=text, **plain) | arrays
    images = [IMAGE] * len(json.loads(text)) if images is None else images
    if len(images):
        given["CONTROL_IMAGES"] = np.stack(images)[None]
    return read_request(given, WITH_CONTROLS)


def test_defaults() -> None:
    (control,) = read([{"name": "edges"}]).controls
    assert control.use == ControlUse("edges", 1.0, 0.0, 1.0)
    assert (control.image == IMAGE).all()
    assert control.preparation.report == {}
    assert read().controls == ()


def test_several_each_with_its_image() -> None:
    names = [{"name": "depth", "scale": 0}, {"name": "edges", "scale": -2}, {"name": "depth"}]
    images = [IMAGE, 255 - IMAGE, IMAGE // 2]
    controls = read(names, images).controls
    assert [(c.use.name, c.use.scale) for c in controls] == [
        ("depth", 0.0),
        ("edges", -2.0),
        ("depth", 1.0),
    ]
    made = prepared(controls, 128, 128)
    assert (made == np.stack(images)).all()


def test_what_is_done_to_an_image_is_its_own_elements() -> None:
    elements = [{"name": "edges", "preprocess": "invert"}, {"name": "depth", "resize": "fit"}]
    first, second = prepared(read(elements).controls, 128, 128)
    assert (first == 255 - IMAGE).all()
    assert (second == IMAGE).all()


def test_without_any_there_is_one_pixel() -> None:
    assert prepared((), 128, 128).shape == (1, 1, 1, 3)


def test_images_are_brought_to_the_size_of_the_picture() -> None:
    elements = [{"name": "edges", "resize": "stretch"}]
    wanted = read(elements, [IMAGE[:50, :60]], WIDTH=96, HEIGHT=64)
    assert prepared(wanted.controls, wanted.width, wanted.height).shape == (1, 64, 96, 3)


def test_an_edit_has_the_size_of_its_template() -> None:
    template = {"IMAGE": IMAGE[None, :64, :96], "MASK": np.full((1, 64, 96), 255, np.uint8)}
    (control,) = read([{"name": "edges"}], [IMAGE[:64, :96]], **template).controls
    assert control.image.shape == (64, 96, 3)
    with pytest.raises(InvalidInput, match="accepted: the picture's size, 96 x 64 pixels"):
        read([{"name": "edges"}], [IMAGE], **template)


def test_an_edit_keeps_its_mode() -> None:
    edit = {"IMAGE": IMAGE[None], "MASK": np.full((1, 128, 128), 255, np.uint8)}
    wanted = read([{"name": "edges"}], **edit)
    assert wanted.edit is not None
    assert wanted.edit.mode == "auto"


def test_an_edits_mask_hides_pixels_of_an_image_to_inpaint() -> None:
    mask = np.zeros((1, 128, 128), np.uint8)
    mask[:, :40, :50], mask[:, 60:, 60:] = contract.EDITED, contract.EDITED - 1
    edit = {"IMAGE": IMAGE[None], "MASK": mask}
    elements = [{"name": "edges", "preprocess": "inpaint"}, {"name": "edges"}]
    wanted = read(elements, **edit)
    assert wanted.controls[0].preparation.report == {"preprocess": "inpaint"}
    first, second = prepared(wanted.controls, 128, 128, mask[0])
    assert (first[..., :3] == IMAGE).all()
    assert (second[..., :3] == IMAGE).all()
    assert (first[:40, :50, 3] == 255).all()
    assert (first[..., 3] > 0).sum() == 40 * 50, "as `mask > 0.5` in diffusers' documentation"
    assert not second[..., 3].any()
    assert prepared(read(elements[1:], **edit).controls, 128, 128, mask[0]).shape[3] == 3


@pytest.mark.parametrize(("mode", "number"), [("canny", 3), ("openpose", 0), (5, 5), (0, 0)])
def test_a_union_has_a_mode(mode: str | int, number: int) -> None:
    (control,) = read([{"name": "all", "mode": mode}]).controls
    assert control.use == ControlUse("all", 1.0, 0.0, 1.0, mode=number)
    assert control.use.report["mode"] == number


def test_guess_mode_and_pooled_ones_guide_the_prompt_only() -> None:
    elements = [{"name": "edges", "guess_mode": True, "scale": 0.5}, {"name": "depth"}]
    guessing, pooled = (control.use for control in read(elements).controls)
    assert guessing.of_prompt_only
    assert pooled.of_prompt_only
    expected = (0.5 * torch.logspace(-1, 0, 13)).tolist()
    assert guessing.scales(13) == pytest.approx(expected, rel=1e-6)
    assert pooled.scales(2) == [1.0, 1.0]
    assert guessing.report["guess_mode"] is True
    assert "guess_mode" not in pooled.report
    assert "mode" not in pooled.report
    assert not read([{"name": "edges"}]).controls[0].use.of_prompt_only


def one(**settings: Any) -> dict[str, Any]:
    return {"controls": [{"name": "edges", **settings}]}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "name": (one(name="pose"), r"CONTROLS\[0\].name is 'pose'; accepted: all, depth, edges"),
    "close name": (one(name="edgse"), "one of the 3 installed ControlNets; close: edges"),
    "no name": (
        {"controls": [{}], "images": [IMAGE]},
        r"CONTROLS\[0\].name is missing; accepted: a text",
    ),
    "second": (
        {"controls": [{"name": "edges"}, {"name": "x"}]},
        r"CONTROLS\[1\].name is 'x'; accepted: all, depth, edges",
    ),
    "many": ({"controls": [{"name": "edges"}] * 5}, "CONTROLS has 5 elements; .* at most 4"),
    "no JSON": ({"controls": "[{", "images": [IMAGE]}, r"CONTROLS is '\[{'; accepted: a JSON list"),
    "no list": ({"controls": "{}", "images": [IMAGE]}, "CONTROLS is '{}'; accepted: a JSON list"),
    "another key": (one(weight=1), r"CONTROLS\[0\].weight is not a key; accepted: name, scale"),
    "scale NaN": (one(scale=float("nan")), r"CONTROLS\[0\].scale is nan"),
    "scale infinite": (one(scale=float("-inf")), r"CONTROLS\[0\].scale is -inf"),
    "scale large": (one(scale=100.5), "scale is 100.5; accepted: a number from -100 to 100"),
    "scale small": (one(scale=-101), "scale is -101; accepted: a number from -100 to 100"),
    "scale text": (one(scale="1"), r"CONTROLS\[0\].scale is '1'"),
    "scale true": (one(scale=True), r"CONTROLS\[0\].scale is True"),
    "start": (one(start=-0.1), r"CONTROLS\[0\].start is -0.1; accepted: a number from 0 to 1"),
    "start NaN": (one(start=float("nan")), r"CONTROLS\[0\].start is nan"),
    "end": (one(end=1.01), r"CONTROLS\[0\].end is 1.01; accepted: a number from 0 to 1"),
    "end NaN": (one(end=float("nan")), r"CONTROLS\[0\].end is nan"),
    "start after end": (one(start=0.6, end=0.5), "start is 0.6; accepted: .* below end, .* 0.5"),
    "start at end": (one(start=0.5, end=0.5), "start is 0.5; accepted: .* below end, .* 0.5"),
    "nothing": (one(end=0), "start is 0.0; accepted: .* below end, which is 0"),
    "preprocess": (one(preprocess="hed"), "preprocess is 'hed'; accepted: none, canny, grey, inv"),
    "resize": (one(resize="crop"), "resize is 'crop'; accepted: none, stretch, fit, fill"),
    "low without canny": (one(low=5), "low is 5.0; accepted: nothing, unless preprocess is canny"),
    "high without canny": (one(preprocess="grey", high=5), "high is 5.0; accepted: nothing"),
    "low NaN": (one(preprocess="canny", low=float("nan")), r"CONTROLS\[0\].low is nan"),
    "low negative": (
        one(preprocess="canny", low=-1),
        "low is -1; accepted: a number from 0",
    ),
    "high large": (
        one(preprocess="canny", high=2041),
        "high is 2041; accepted: .*to 2040",
    ),
    "low above high": (one(preprocess="canny", low=201), "low is 201.0; .* high, which is 200"),
    "mode of none": (one(mode=1), r"CONTROLS\[0\].mode is 1; accepted: nothing, since edges is no"),
    "no mode": (
        one(name="all"),
        r"CONTROLS\[0\].mode is missing; accepted: openpose, depth, .* number from 0 to 5",
    ),
    "mode beyond": (one(name="all", mode="tile"), "mode is 'tile'; accepted: openpose"),
    "number beyond": (one(name="all", mode=6), "mode is 6; accepted: openpose"),
    "mode negative": (one(name="all", mode=-1), "mode is -1; accepted: openpose"),
    "mode whole": (one(name="all", mode=1.5), "mode is 1.5; accepted: an integer or a text"),
    "guess_mode": (one(guess_mode=1), r"CONTROLS\[0\].guess_mode is 1; accepted: true or false"),
    "inpaint without a mask": (
        one(preprocess="inpaint"),
        "preprocess is 'inpaint'; accepted: another word, unless the request is an edit",
    ),
    "image left out": (
        one() | {"images": []},
        "CONTROL_IMAGES is missing; accepted: one image for each .*, which has 1",
    ),
    "image too many": (
        one() | {"images": [IMAGE] * 2},
        "CONTROL_IMAGES has 2 images; accepted: .* which has 1",
    ),
    "image too few": (
        {"controls": [{"name": "edges"}] * 2, "images": [IMAGE]},
        "CONTROL_IMAGES has 1 image; accepted: .* which has 2",
    ),
    "image alone": (
        {"images": [IMAGE]},
        "CONTROL_IMAGES has 1 image; accepted: .* which has none",
    ),
    "image of another size": (
        one() | {"images": [IMAGE[:, :64]]},
        "CONTROL_IMAGES has 64 x 128 pixels; accepted: the picture's size, 128 x 128 pixels, or "
        r"another and CONTROLS\[0\].resize: stretch, fit, fill",
    ),
    "one of two without resize": (
        {
            "controls": [{"name": "edges", "resize": "fit"}, {"name": "depth"}],
            "images": [IMAGE[:9]] * 2,
        },
        r"has 128 x 9 pixels; accepted: .* CONTROLS\[1\].resize",
    ),
    "image empty": (
        one(resize="fit") | {"images": [IMAGE[:0]]},
        "CONTROL_IMAGES has 128 x 0 pixels; accepted: sides of 1 to 8192 pixels",
    ),
    "image huge": (
        one(resize="fit") | {"images": [np.zeros((1, MAX_CONTROL_SIDE + 1, 3), np.uint8)]},
        "CONTROL_IMAGES has 8193 x 1 pixels",
    ),
    "too many pixels": (
        one(resize="fit") | {"images": [np.zeros((4096, 4097, 3), np.uint8)]},
        "CONTROL_IMAGES has 16781312 pixels; accepted: at most 16777216 pixels in all images",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_values_are_named_with_what_is_accepted(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence) as caught:
        read(**values)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_bundle_without_controlnets_says_so() -> None:
    given = inputs(CONTROLS='[{"name": "edges"}]') | {"CONTROL_IMAGES": IMAGE[None, None]}
    with pytest.raises(InvalidInput, match="'edges'; accepted: nothing, since no ControlNet is in"):
        read_request(given, MANIFEST)


@given(text=st.binary(max_size=40))
def test_any_bytes_are_a_list_or_an_error(text: bytes) -> None:
    try:
        read_request(inputs(CONTROLS=text), WITH_CONTROLS)
    except InvalidInput as error:
        assert error.field.startswith("CONTROL")


@given(
    scale=st.floats(),
    start=st.floats(-0.1, 1.1),
    end=st.floats(-0.1, 1.1),
    low=st.none() | st.floats(-10, 3000),
)
def test_what_is_accepted_is_in_range(
    scale: float, start: float, end: float, low: float | None
) -> None:
    settings = {"scale": scale, "start": start, "end": end}
    canny = {} if low is None else {"preprocess": "canny", "low": low}
    try:
        (control,) = read([{"name": "edges", **settings, **canny}]).controls
    except InvalidInput as error:
        assert error.field.startswith("CONTROLS[0].")
        return
    assert abs(control.use.scale) <= 100
    assert 0 <= control.use.start < control.use.end <= 1
    assert 0 <= control.preparation.low <= control.preparation.high


def test_a_plan_brings_its_controlnets_along() -> None:
    uses = (ControlUse("edges", 0.5, 0.1, 0.6), ControlUse("depth", 1.0, 0.0, 1.0))
    plan = Plan(0, 1, "j", 2, 3, 4.0, 64, 64, "euler", 0.0, controls=uses)
    plan = dataclasses.replace(plan, prepared=({"preprocess": "grey"}, {}))
    assert Plan.from_json(plan.to_json()) == plan


def diffusers_keeps(pipeline: type[Any]) -> CodeType:
    """The expression that a pipeline of diffusers has for the steps of its ControlNets."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(pipeline.__call__)))
    (keeps,) = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "keeps"
    )
    return compile(ast.Expression(keeps), "keeps", "eval")


KEEPS = [
    diffusers_keeps(pipeline)
    for pipeline in (StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline)
]
SHARES = sorted({i / n for n in (3, 7, 10, 20, 50) for i in range(n + 1)})


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 20, 30, 50, 999])
def test_controlnets_are_active_when_diffusers_keeps_them(steps: int) -> None:
    windows = [(a, b) for a in SHARES for b in SHARES if a < b][:: 1 if steps < 100 else 50]
    starts, ends = zip(*windows, strict=True)
    uses = [ControlUse("edges", 1.0, *window) for window in windows]
    names = {"control_guidance_start": starts, "control_guidance_end": ends}
    for step in range(steps):
        ours = [float(use.applies_at(step, steps)) for use in uses]
        for keeps in KEEPS:
            assert ours == eval(keeps, {"timesteps": range(steps), "i": step, **names})


@given(
    steps=st.integers(1, 1000), start=st.floats(0, 1), end=st.floats(0, 1), share=st.floats(0, 1)
)
def test_any_window_is_diffusers_window(steps: int, start: float, end: float, share: float) -> None:
    step = min(int(share * steps), steps - 1)
    names = {"control_guidance_start": [start], "control_guidance_end": [end]}
    (keep,) = eval(KEEPS[0], {"timesteps": range(steps), "i": step, **names})
    assert float(ControlUse("edges", 1.0, start, end).applies_at(step, steps)) == keep

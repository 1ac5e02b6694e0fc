"""`encode`: requests become plans and tensors."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from tessera.manifest import Graph
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, encoded, message, phase
from tests.samples.requests import MANIFEST, inputs

CONTROLS = [
    {"name": "edges", "scale": 0.5, "end": 0.8, "preprocess": "canny"},
    {"name": "depth", "resize": "fit"},
]


def control_inputs(height: int, width: int) -> dict[str, Any]:
    """What names two ControlNets, and their images."""
    images = np.random.default_rng(2).integers(0, 256, (1, 2, height, width, 3), np.uint8)
    text = np.array([[json.dumps(CONTROLS).encode()]], object)
    return {"CONTROLS": text, "CONTROL_IMAGES": images}


@pytest.fixture
def rendered(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `render` is given; it does not denoise. The bundle has two ControlNets."""
    graphs = {f"controlnet_{name}": Graph("a.onnx", "c.json") for name in ("edges", "depth")}
    manifest = dataclasses.replace(MANIFEST, graphs=graphs)
    monkeypatch.setattr(models["encode"], "_manifest", manifest)
    given: list[dict[str, Any]] = []

    def render(arrays: dict[str, Any]) -> pb_utils.InferenceResponse:
        given.append(arrays)
        plan = json.loads(arrays["PLAN"][0, 0])
        latents = np.zeros((1, 4, plan["height"] // 4, plan["width"] // 4), np.float32)
        stats = np.array([[b'{"engine_ms": 0.0}']], object)
        tensors = {"LATENTS": latents, "STATS": stats}
        return pb_utils.InferenceResponse([pb_utils.Tensor(*item) for item in tensors.items()])

    monkeypatch.setitem(pb_utils.BLS, "render", render)
    return given


def test_the_images_of_controlnets_reach_render_as_their_networks_take_them(
    models: dict[str, Any], rendered: list[dict[str, Any]]
) -> None:
    given = edit_inputs(JOB_ID="j") | control_inputs(96, 64)
    response = models["edit"].execute([pb_utils.Request(**given)])[0]
    assert response.error is None, response.error
    ((edges, depth),) = rendered[0]["CONTROL"]
    assert edges.shape == depth.shape == (96, 64, 3)
    assert set(np.unique(edges)) == {0, 255}
    assert (depth == given["CONTROL_IMAGES"][0, 1]).all()
    plan = json.loads(rendered[0]["PLAN"][0, 0])
    assert plan["controls"] == [
        {"name": "edges", "scale": 0.5, "start": 0.0, "end": 0.8},
        {"name": "depth", "scale": 1.0, "start": 0.0, "end": 1.0},
    ]
    done = [{"preprocess": "canny", "low": 100.0, "high": 200.0}, {"resize": "fit"}]
    info = json.loads(response.arrays()["INFO"][0, 0])
    assert info["controls"] == [a | b for a, b in zip(plan["controls"], done, strict=True)]


@pytest.mark.usefixtures("rendered")
def test_every_request_has_a_tensor_for_controlnets(models: dict[str, Any]) -> None:
    given = inputs(STEPS=2, WIDTH=96) | control_inputs(128, 96)
    with_controls = models["encode"].execute([pb_utils.Request(**given)])[0].arrays()
    without = encoded(models, STEPS=2)
    assert with_controls["CONTROL"].shape == (1, 2, 128, 96, 3)
    assert without["CONTROL"].shape == (1, 1, 1, 1, 3)
    assert set(with_controls) == set(without)
    assert with_controls["CONTROL"].dtype == without["CONTROL"].dtype == np.uint8


def test_without_guidance_there_is_one_branch(models: dict[str, Any]) -> None:
    assert encoded(models, GUIDANCE=1.0)["TEXT"].shape[1] == 1


def test_one_bad_request_does_not_touch_the_others(models: dict[str, Any]) -> None:
    requests = [pb_utils.Request(**inputs(STEPS=s)) for s in (3, 0, 4)]
    first, second, third = models["encode"].execute(requests)
    assert first.error is None
    assert third.error is None
    sentence, code = message(second)
    assert sentence.startswith("STEPS is 0; accepted")
    assert code == pb_utils.TritonError.INVALID_ARG
    assert models["board"].running() == 2


def test_an_unexpected_error_is_an_id_for_the_caller_and_a_trace_in_the_log(
    models: dict[str, Any],
) -> None:
    def explode(inputs: Any) -> dict[str, torch.Tensor]:
        raise ZeroDivisionError("secret detail")

    models["bundle"].engines["text_encoder"]._run = explode
    sentence, code = message(models["encode"].execute([pb_utils.Request(**inputs(JOB_ID="j"))])[0])
    assert code == pb_utils.TritonError.INTERNAL
    assert "secret" not in sentence
    identity = sentence.split()[2].rstrip(";")
    assert any(identity in line and "secret detail" in line for line in pb_utils.Logger.lines)
    assert phase(models, "j") == "failed"

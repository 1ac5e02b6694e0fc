"""`encode`: requests become plans and tensors."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from typing import Any

import numpy as np
import pytest
import torch

from tessera.engines.base import failed
from tessera.manifest import Graph
from tessera.templates.files import Patience
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import denoised, edit_inputs, encoded, message, phase, plan_in
from tests.samples.requests import MANIFEST, inputs

CONTROLS: list[dict[str, Any]] = [
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

    def render(encoded: dict[str, Any]) -> list[pb_utils.Tensor]:
        given.append({name: tensor.as_numpy() for name, tensor in encoded.items()})
        latents = np.zeros((1, *plan_in(given[-1]).shapes["LATENTS"]), np.float32)
        tensors = denoised(given[-1], latents)
        return [pb_utils.Tensor(*item) for item in tensors.items()]

    monkeypatch.setattr(models["edit"]._renderer, "render", render)
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
    plan = dataclasses.asdict(plan_in(rendered[0]))
    said: list[dict[str, Any]] = [
        {"name": "edges", "scale": 0.5, "start": 0.0, "end": 0.8},
        {"name": "depth", "scale": 1.0, "start": 0.0, "end": 1.0},
    ]
    unsaid: dict[str, Any] = {"mode": None, "guess_mode": False, "pooled": False, "image": ""}
    assert list(plan["controls"]) == [use | unsaid for use in said]
    done: list[dict[str, Any]] = [
        {"preprocess": "canny", "low": 100.0, "high": 200.0},
        {"resize": "fit"},
    ]
    info = json.loads(response.arrays()["INFO"][0, 0])
    assert info["controls"] == [a | b for a, b in zip(said, done, strict=True)]


def test_the_mask_reaches_render_for_a_controlnet_that_inpaints(
    models: dict[str, Any], rendered: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTROLS[1], "preprocess", "inpaint")
    given = edit_inputs(JOB_ID="j") | control_inputs(96, 64)
    response = models["edit"].execute([pb_utils.Request(**given)])[0]
    assert response.error is None, response.error
    ((edges, depth),) = rendered[0]["CONTROL"]
    assert not edges[..., 3].any()
    assert (depth[..., 3] == np.where(given["MASK"][0] >= 128, 255, 0)).all()
    assert (depth[..., :3] == given["CONTROL_IMAGES"][0, 1]).all()


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


def test_what_a_runtime_says_is_for_the_log(models: dict[str, Any]) -> None:
    """It names files, and nodes of graphs."""

    def broken(inputs: Any) -> dict[str, torch.Tensor]:
        raise failed("ONNX Runtime", RuntimeError("node /mid/conv of /srv/bundle/a.onnx"))

    models["bundle"].by_graph["text_encoder"]._run = broken
    sentence, code = message(models["encode"].execute([pb_utils.Request(**inputs())])[0])
    assert re.fullmatch(r"internal error \w{12}; the server's log has the details", sentence)
    assert code == pb_utils.TritonError.INTERNAL
    identity = sentence.split()[2].rstrip(";")
    assert any(identity in line and "/mid/conv" in line for line in pb_utils.Logger.lines)


def test_a_request_that_fits_into_memory_later_is_unavailable(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models["encode"], "_held", 1)
    first, second = models["encode"].execute([pb_utils.Request(**inputs()) for _ in range(2)])
    assert first.error is None
    sentence, code = message(second)
    assert sentence.startswith("requests under way hold")
    assert code == pb_utils.TritonError.UNAVAILABLE


def test_a_request_that_never_fits_into_memory_names_its_field(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = models["encode"]._memory
    tight = dataclasses.replace(memory, vae=dataclasses.replace(memory.vae, available=1000))
    monkeypatch.setattr(models["encode"], "_memory", tight)
    sentence, code = message(models["encode"].execute([pb_utils.Request(**inputs())])[0])
    assert sentence.startswith("WIDTH makes a picture of")
    assert code == pb_utils.TritonError.INVALID_ARG


def test_a_template_on_storage_that_stalls_is_unavailable(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, going_on = models["encode"]._store, threading.Event()
    store.patience = Patience(0.05)
    monkeypatch.setattr(store.pictures, "get", lambda identity: going_on.wait())
    given = edit_inputs(TEMPLATE="0123456789abcdef")
    del given["IMAGE"]
    found = message(models["encode"].execute([pb_utils.Request(**given)])[0])
    going_on.set()
    sentence = "the storage of templates does not answer; try again later"
    assert found == (sentence, pb_utils.TritonError.UNAVAILABLE)


@pytest.mark.parametrize("mode", ["auto", "sparse"])
def test_an_edit_does_not_wait_until_a_stalling_storage_has_its_template(
    sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Unless it has to: then it is told."""
    store, going_on = sparse_models["encode"]._store, threading.Event()
    store.patience = Patience(0.05)
    monkeypatch.setattr(store, "keep", lambda picture: going_on.wait())
    given = edit_inputs(STEPS=2, MODE=mode)
    response = sparse_models["encode"].execute([pb_utils.Request(**given)])[0]
    going_on.set()
    sentence = "cannot be kept: its storage does not answer"
    if mode == "auto":
        assert response.error is None, response.error
        assert any(sentence in line for line in pb_utils.Logger.lines)
    else:
        told, code = message(response)
        assert told.endswith(sentence)
        assert code == pb_utils.TritonError.UNAVAILABLE


def test_an_unexpected_error_is_an_id_for_the_caller_and_a_trace_in_the_log(
    models: dict[str, Any],
) -> None:
    def explode(inputs: Any) -> dict[str, torch.Tensor]:
        raise ZeroDivisionError("secret detail")

    models["bundle"].by_graph["text_encoder"]._run = explode
    sentence, code = message(models["encode"].execute([pb_utils.Request(**inputs(JOB_ID="j"))])[0])
    assert code == pb_utils.TritonError.INTERNAL
    assert "secret" not in sentence
    identity = sentence.split()[2].rstrip(";")
    assert any(identity in line and "secret detail" in line for line in pb_utils.Logger.lines)
    assert phase(models, "j") == "failed"


def test_a_fill_changes_active_latents_of_the_canvas_only(models: dict[str, Any]) -> None:
    def canvas(**values: Any) -> dict[str, Any]:
        given = edit_inputs(SEED=3, **values)
        given["STRENGTH"][:] = values.pop("strength", 0.5)
        response = models["encode"].execute([pb_utils.Request(**given)])[0]
        assert response.error is None, response.error
        return dict(response.arrays())

    plain = canvas()
    for fill in ("blur", "noise"):
        found = canvas(MASK_FILL=fill)
        active = found["ACTIVE"][0] > 0
        assert (found["CLEAN"][0][:, ~active] == plain["CLEAN"][0][:, ~active]).all()
        assert (found["CLEAN"][0][:, active] != plain["CLEAN"][0][:, active]).mean() > 0.9
        assert (found["CLEAN"] == canvas(MASK_FILL=fill)["CLEAN"]).all()
        assert (found["PIXELS"] == plain["PIXELS"]).all()
        assert plan_in(found).template == plan_in(plain).template
        whole = canvas(MASK_FILL=fill, strength=1.0)
        assert (whole["CLEAN"] == plain["CLEAN"]).all()
    assert (canvas(MASK_FILL="original")["CLEAN"] == plain["CLEAN"]).all()

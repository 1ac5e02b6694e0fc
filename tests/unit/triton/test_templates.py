"""`templates`: registering, listing, evicting."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tessera.manifest import Graph
from tessera.plan import AdapterUse
from tessera.requests.parameters import adapters_text
from tessera.templates.store import RecordingKey
from tessera.templates.texts import text_id
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, message, plan_in
from tests.samples.requests import inputs


def test_a_recording_whose_edit_was_cancelled_is_not_begun(sparse_models: dict[str, Any]) -> None:
    template = sparse_models["templates"]._store.keep(edit_inputs()["IMAGE"][0])
    given = inputs(ACTION="register", TEMPLATE=template)
    del given["PROMPT"]
    for job in ("goes on", "cancelled"):
        sparse_models["board"].open(job, 1)
    sparse_models["board"].cancel("cancelled")
    responses = [
        sparse_models["templates"].execute([pb_utils.Request(parameters={"job_id": j}, **given)])[0]
        for j in ("cancelled", "goes on")
    ]
    code = pb_utils.TritonError.CANCELLED
    assert message(responses[0]) == ("job cancelled was cancelled", code)
    assert responses[1].error is None
    assert len(sparse_models["recorder"].keys) == 1


def test_registering_with_a_prompt_records_both_branches(sparse_models: dict[str, Any]) -> None:
    templates, recorder = sparse_models["templates"], sparse_models["recorder"]
    given = inputs(ACTION="register", PROMPT="a star", NEGATIVE_PROMPT="grey", STEPS=4)
    request = pb_utils.Request(**given, IMAGE=edit_inputs()["IMAGE"])
    answer = json.loads(templates.execute([request])[0].arrays()["RESULT"][0, 0])
    negative, own = recorder.keys
    assert (negative.text, own.text) == (text_id("grey"), text_id("a star"))
    assert answer["prompt"] == own.text
    assert templates._store.texts.get(own.digest)["hidden"].tolist() == [[6.0, 6.0]] * 3
    listed = templates.execute([pb_utils.Request(**inputs(ACTION="list"))])[0].arrays()
    (found,) = json.loads(listed["RESULT"][0, 0])["templates"]
    assert {r["prompt"] for r in found["recordings"]} == {negative.text, own.text}
    # An edit of that prompt finds its recording; one without the negative prompt does not.
    both = edit_inputs(PROMPT="a star", NEGATIVE_PROMPT="grey", STEPS=4, MODE="sparse")
    assert sparse_models["edit"].execute([pb_utils.Request(**both)])[0].error is None
    assert len(recorder.keys) == 2
    other = edit_inputs(PROMPT="a star", STEPS=4, MODE="sparse")
    assert sparse_models["edit"].execute([pb_utils.Request(**other)])[0].error is None
    assert [key.text for key in recorder.keys[2:]] == ["", own.text]


def test_registering_with_loras(sparse_models: dict[str, Any]) -> None:
    templates, recorder = sparse_models["templates"], sparse_models["recorder"]
    loras = json.dumps([{"name": "night", "weight": 0.5}])
    given = inputs(ACTION="register", PROMPT="a star", LORAS=loras, STEPS=4)
    request = pb_utils.Request(**given, IMAGE=edit_inputs()["IMAGE"])
    answer = json.loads(templates.execute([request])[0].arrays()["RESULT"][0, 0])
    negative, own = recorder.keys
    assert negative.adapters == own.adapters == (AdapterUse("night", "night", 0.5),)
    assert (negative.text, own.text) == ("", text_id("a star", loras=[("night", 0.5)]))
    assert answer["loras"] == [{"name": "night", "weight": 0.5}]
    listed = templates.execute([pb_utils.Request(**inputs(ACTION="list"))])[0].arrays()
    (found,) = json.loads(listed["RESULT"][0, 0])["templates"]
    assert [r["loras"] for r in found["recordings"]] == [answer["loras"]] * 2


CONTROL = {"name": "edges", "scale": 0.5, "end": 0.5}


def controlled(**values: Any) -> dict[str, Any]:
    """Inputs of a registration with a ControlNet."""
    images = np.full((1, 1, 96, 64, 3), 7, np.uint8)
    given = {"ACTION": "register", "STEPS": 4, "CONTROLS": json.dumps([CONTROL])}
    pictures = {"IMAGE": edit_inputs()["IMAGE"], "CONTROL_IMAGES": images}
    arrays = {k: v for k, v in values.items() if k in pictures}
    return inputs(**given | {k: v for k, v in values.items() if k not in pictures}) | (
        pictures | arrays
    )


@pytest.fixture
def guided_models(sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`sparse_models` of a bundle with the ControlNet `edges`, which is loaded by nobody."""
    taken: list[str] = []
    for name in ("encode", "templates"):
        manifest = sparse_models[name]._manifest
        graphs = manifest.graphs | {"controlnet_edges": Graph("a.onnx", "c.json")}
        held = dataclasses.replace(manifest, graphs=graphs)
        monkeypatch.setattr(sparse_models[name], "_manifest", held)
    residency = SimpleNamespace(
        take=lambda names: taken.append(f"+{','.join(names)}"),
        give_back=lambda names: taken.append(f"-{','.join(names)}"),
    )
    monkeypatch.setattr(sparse_models["templates"], "_open_residency", lambda: residency)
    return sparse_models | {"taken": taken}


def test_registering_with_controlnets(guided_models: dict[str, Any]) -> None:
    templates, recorder = guided_models["templates"], guided_models["recorder"]
    request = pb_utils.Request(**controlled(PROMPT="a star"))
    answer = json.loads(templates.execute([request])[0].arrays()["RESULT"][0, 0])
    negative, own = recorder.keys
    assert (negative.text, own.text) == ("", text_id("a star"))
    assert negative.controls == own.controls
    (control,) = own.controls
    found = (control.name, control.scale, control.first, control.last)
    assert found == ("edges", 0.5, 0, 2)
    assert answer["controls"] == [control.report]
    assert guided_models["taken"] == ["+edges", "-edges"]
    listed = templates.execute([pb_utils.Request(**inputs(ACTION="list"))])[0].arrays()
    (found,) = json.loads(listed["RESULT"][0, 0])["templates"]
    assert [r["controls"] for r in found["recordings"]] == [[control.report]] * 2


def test_an_edit_knows_the_recording_by_the_image(guided_models: dict[str, Any]) -> None:
    """The plan that `encode` makes names what was registered; another image is another one."""
    answer = guided_models["templates"].execute([pb_utils.Request(**controlled())])[0]
    assert answer.error is None
    recorded, _ = guided_models["recorder"].keys  # with the empty prompt, and with its own
    names = ("CONTROLS", "CONTROL_IMAGES")
    controls = {name: controlled()[name] for name in names}
    found = []
    for images in (controls["CONTROL_IMAGES"], controls["CONTROL_IMAGES"] + 1):
        given = edit_inputs(STEPS=4) | controls | {"CONTROL_IMAGES": images}
        encoded = guided_models["encode"].execute([pb_utils.Request(**given)])[0]
        assert encoded.error is None, encoded.error
        plan = plan_in(encoded.arrays())
        found.append(RecordingKey.of_plan(guided_models["digest"], plan, recorded.seed))
    assert found[0] == dataclasses.replace(recorded, bundle=guided_models["digest"])
    assert found[1].controls[0].image != found[0].controls[0].image


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"CONTROLS": '[{"name": "pose"}]'}, "CONTROLS[0].name is 'pose'; accepted: edges"),
        ({"CONTROLS": "[]"}, "CONTROL_IMAGES has 1 image; accepted: one image for each"),
        (
            {"CONTROL_IMAGES": np.zeros((1, 1, 64, 64, 3), np.uint8)},
            "CONTROL_IMAGES has 64 x 64 pixels; accepted: the picture's size, 64 x 96 pixels",
        ),
        (
            {"CONTROLS": '[{"name": "edges", "preprocess": "inpaint"}]'},
            "CONTROLS[0].preprocess is 'inpaint'; accepted: another word, unless",
        ),
        ({"CONTROL_IMAGES": None}, "CONTROL_IMAGES is missing; accepted: one image for each"),
    ],
    ids=["unknown", "too many images", "another size", "the mask's", "no image"],
)
def test_bad_controlnets_of_recordings_are_refused(
    guided_models: dict[str, Any], given: dict[str, Any], sentence: str
) -> None:
    sent = {name: value for name, value in controlled(**given).items() if value is not None}
    assert message(guided_models["templates"].execute([pb_utils.Request(**sent)])[0])[0].startswith(
        sentence
    )
    assert not guided_models["recorder"].keys
    assert not guided_models["taken"]


def test_an_edit_that_waits_says_its_loras(sparse_models: dict[str, Any]) -> None:
    """As `render` does, in a request parameter."""
    template = sparse_models["templates"]._store.keep(edit_inputs()["IMAGE"][0])
    given = {k: v for k, v in inputs(ACTION="register", TEMPLATE=template).items() if k != "PROMPT"}
    uses = (AdapterUse("night", "0a1b", 0.5), AdapterUse("b", "2c", -1.0))
    told = {"texts": "", "adapters": adapters_text(uses)}
    request = pb_utils.Request(parameters=told, **given)
    assert sparse_models["templates"].execute([request])[0].error is None
    assert [key.adapters for key in sparse_models["recorder"].keys] == [uses]


@pytest.mark.parametrize("told", ["night", "{}{", '[["a", "b"]]', '[["a", 1, 1.0]]', "[[1]]", "7"])
def test_only_lists_of_loras_are_taken(sparse_models: dict[str, Any], told: str) -> None:
    template = sparse_models["templates"]._store.keep(edit_inputs()["IMAGE"][0])
    given = inputs(ACTION="register", TEMPLATE=template)
    request = pb_utils.Request(parameters={"texts": "", "adapters": told}, **given)
    sentence, _ = message(sparse_models["templates"].execute([request])[0])
    assert "accepted: a JSON list of [name, digest, weight]" in sentence
    assert not sparse_models["recorder"].keys


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"PROMPT": "x" * 2001}, "PROMPT is 'xxx"),
        ({"PROMPT_SYNTAX": "other"}, "PROMPT_SYNTAX is 'other'; accepted: weighted, plain"),
        ({"CLIP_SKIP": 9}, "CLIP_SKIP is 9; accepted"),
        ({"LORAS": "night"}, "LORAS is 'night'; accepted: a JSON list"),
        ({"LORAS": '[{"nam": "a"}]'}, "LORAS[0].nam is not a key"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_bad_prompts_of_recordings_are_refused(
    sparse_models: dict[str, Any], given: dict[str, Any], sentence: str
) -> None:
    request = pb_utils.Request(
        **inputs(**{"ACTION": "register", **given}), IMAGE=edit_inputs()["IMAGE"]
    )
    assert message(sparse_models["templates"].execute([request])[0])[0].startswith(sentence)
    assert not sparse_models["recorder"].keys


@pytest.mark.parametrize("texts", ["../..", "a,b,c", "0123456789ABCDEF"])
def test_only_ids_of_prompts_are_taken(sparse_models: dict[str, Any], texts: str) -> None:
    template = sparse_models["templates"]._store.keep(edit_inputs()["IMAGE"][0])
    given = {k: v for k, v in inputs(ACTION="register", TEMPLATE=template).items() if k != "PROMPT"}
    request = pb_utils.Request(parameters={"texts": texts}, **given)
    sentence, _ = message(sparse_models["templates"].execute([request])[0])
    assert sentence.startswith(f"texts is {texts!r}; accepted: one or two ids of 16")


def answer_of(models: dict[str, Any], **values: Any) -> Any:
    given = inputs(**{k: v for k, v in values.items() if k != "IMAGE"})
    del given["PROMPT"]
    given |= {k: v for k, v in values.items() if k == "IMAGE"}
    return models["templates"].execute([pb_utils.Request(**given)])[0]


def test_templates_are_registered_listed_and_evicted(sparse_models: dict[str, Any]) -> None:
    def ask(**values: Any) -> dict[str, Any]:
        response = answer_of(sparse_models, **values)
        if response.error is not None:
            return {"error": response.error.message()}
        answer: dict[str, Any] = json.loads(response.arrays()["RESULT"][0, 0])
        return answer

    assert ask(ACTION="list")["templates"] == []
    image = edit_inputs()["IMAGE"]
    made = ask(ACTION="register", IMAGE=image, STEPS=7)
    assert (made["steps"], made["scheduler"], made["recorded"]) == (7, "euler", True)
    (listed,) = ask(ACTION="list")["templates"]
    assert (listed["template"], listed["width"], listed["height"]) == (made["template"], 64, 96)
    assert [r["steps"] for r in listed["recordings"]] == [7]
    assert ask(ACTION="evict", TEMPLATE="x")["error"].startswith(
        "TEMPLATE is 'x'; accepted: the id of a known"
    )
    assert ask(ACTION="evict", TEMPLATE=made["template"])["bytes"] == made["bytes"]
    assert ask(ACTION="list")["templates"] == []
    assert ask(ACTION="register")["error"].startswith("IMAGE is missing, and so is TEMPLATE")
    assert ask(ACTION="frame")["error"] == (
        "ACTION is 'frame'; accepted: register, list, evict, picture"
    )
    large = np.repeat(image, 5, 2)
    assert ask(ACTION="register", IMAGE=large)["error"].startswith("IMAGE has 320 x 96 pixels")


def test_a_template_gives_its_picture_back(sparse_models: dict[str, Any]) -> None:
    image = edit_inputs()["IMAGE"]
    template = sparse_models["templates"]._store.keep(image[0])
    answer = answer_of(sparse_models, ACTION="picture", TEMPLATE=template).arrays()
    np.testing.assert_array_equal(answer["IMAGE"], image)
    expected = {"template": template, "width": 64, "height": 96}
    assert json.loads(answer["RESULT"][0, 0]) == expected
    sentence, code = message(answer_of(sparse_models, ACTION="picture", TEMPLATE="x"))
    assert sentence.startswith("TEMPLATE is 'x'; accepted: the id of a known template")
    assert template not in sentence
    assert code == pb_utils.TritonError.INVALID_ARG


def test_a_single_server_keeps_one_copy(sparse_models: dict[str, Any]) -> None:
    given = {"ACTION": "register", "IMAGE": edit_inputs()["IMAGE"]}
    answer = answer_of(sparse_models, COPIES=1, **given).arrays()
    assert json.loads(answer["RESULT"][0, 0])["copies"] == 1
    assert "copies" not in json.loads(answer_of(sparse_models, **given).arrays()["RESULT"][0, 0])
    for copies in (0, 2):
        sentence, code = message(answer_of(sparse_models, COPIES=copies, **given))
        assert sentence == f"COPIES is {copies}; accepted: 1 by a single server; more by a fleet"
        assert code == pb_utils.TritonError.INVALID_ARG


def test_a_bundle_without_the_graphs_cannot_register(models: dict[str, Any]) -> None:
    given = {**inputs(ACTION="register"), "IMAGE": edit_inputs()["IMAGE"]}
    del given["PROMPT"]
    sentence, code = message(models["templates"].execute([pb_utils.Request(**given)])[0])
    assert sentence.startswith("ACTION is 'register'; accepted: list, evict, picture, since")
    assert code == pb_utils.TritonError.INVALID_ARG

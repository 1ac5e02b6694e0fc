"""Requests that lack an input, or have one of the wrong kind where Triton does not look."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, message, sequence
from tests.samples.requests import inputs

INVALID = pb_utils.TritonError.INVALID_ARG


@pytest.fixture
def nothing_is_logged() -> Any:
    """No traceback: the fault is the caller's."""
    before = list(pb_utils.Logger.lines)
    yield
    assert pb_utils.Logger.lines == before


EDITS = {
    "neither MASK nor STRENGTH": (
        {"MASK", "STRENGTH"},
        {},
        "MASK is missing; accepted: an array (h, w) of UINT8, or STRENGTH to edit the whole",
    ),
    "no MASK, but a template": (
        {"MASK", "IMAGE"},
        {"TEMPLATE": "x"},
        "TEMPLATE is 'x'; accepted: the id of a known template; or send IMAGE",
    ),
    "no PROMPT": ({"PROMPT"}, {}, "PROMPT is ''; accepted: 1 to 2000 characters"),
    "neither IMAGE nor TEMPLATE": (
        {"IMAGE"},
        {},
        "IMAGE is missing, and so is TEMPLATE; accepted: one of the two, IMAGE or TEMPLATE",
    ),
    "IMAGE and TEMPLATE": (
        set[str](),
        {"TEMPLATE": "x"},
        "IMAGE is given as well as TEMPLATE; accepted: one of the two, IMAGE or TEMPLATE",
    ),
}


@pytest.mark.usefixtures("nothing_is_logged")
@pytest.mark.parametrize(("left_out", "more", "sentence"), EDITS.values(), ids=EDITS.keys())
def test_edits_without_what_they_need(
    models: dict[str, Any], left_out: set[str], more: dict[str, Any], sentence: str
) -> None:
    given = {k: v for k, v in edit_inputs(**more).items() if k not in left_out}
    said, code = message(models["edit"].execute([pb_utils.Request(**given)])[0])
    assert said.startswith(sentence)
    assert code == INVALID


@pytest.mark.usefixtures("nothing_is_logged")
@pytest.mark.parametrize("policy", [1.5, True, 3, "", "exactly", "EXACT"])
@pytest.mark.parametrize("model", ["encode", "edit"])
def test_policies_of_loras_that_are_none(
    models: dict[str, Any], model: str, policy: object
) -> None:
    given = edit_inputs()
    request = pb_utils.Request(parameters={"lora_policy": policy}, **given)
    said, code = message(models[model].execute([request])[0])
    assert said == f"lora_policy is {policy!r}; accepted: exact, bounded"
    assert code == INVALID


@pytest.mark.usefixtures("nothing_is_logged")
@pytest.mark.parametrize("job_id", [True, 1.5, 7, "", "jöb", "a\nb", "x" * 65])
def test_jobs_that_wait_for_a_recording_and_are_none(
    sparse_models: dict[str, Any], job_id: object
) -> None:
    template = sparse_models["templates"]._store.keep(edit_inputs()["IMAGE"][0])
    given = {k: v for k, v in inputs(ACTION="register", TEMPLATE=template).items() if k != "PROMPT"}
    request = pb_utils.Request(parameters={"job_id": job_id}, **given)
    said, code = message(sparse_models["templates"].execute([request])[0])
    assert said.startswith("job_id is ")
    assert said.endswith("accepted: 1 to 64 printable ASCII characters")
    assert code == INVALID
    assert not sparse_models["recorder"].keys


@pytest.mark.usefixtures("nothing_is_logged")
def test_a_job_without_its_id(models: dict[str, Any]) -> None:
    request = pb_utils.Request(ACTION=np.array([[b"status"]], object))
    said, code = message(models["jobs"].execute([request])[0])
    assert said == "JOB_ID is missing; accepted: the id of a running or recent job"
    assert code == INVALID


@pytest.mark.usefixtures("nothing_is_logged")
def test_a_template_that_cannot_be_kept(
    sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(picture: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sparse_models["templates"]._store, "keep", full)
    given = inputs(ACTION="register") | {"IMAGE": edit_inputs()["IMAGE"]}
    del given["PROMPT"]
    said, code = message(sparse_models["templates"].execute([pb_utils.Request(**given)])[0])
    assert said == "the template cannot be kept: No space left on device"
    assert code == pb_utils.TritonError.UNAVAILABLE


@pytest.mark.usefixtures("nothing_is_logged")
@pytest.mark.parametrize("model", ["encode", "edit", "decode"])
def test_parameters_that_are_no_text(models: dict[str, Any], model: str) -> None:
    """Triton's parser passes such bytes on."""
    request = pb_utils.Request(raw=b'{"lora_policy": "\xff"}', **edit_inputs())
    said, code = message(models[model].execute([request])[0])
    assert said == "parameters cannot be read; accepted: texts in UTF-8"
    assert code == INVALID


def test_parameters_that_are_no_text_harm_no_running_job(models: dict[str, Any]) -> None:
    runs = sequence(models, 1, STEPS=9)
    stranger = pb_utils.Request(2, raw=b'{"a": "\xff"}', **edit_inputs())
    ours, others = models["denoise"].execute([runs, stranger])
    assert ours is None
    assert message(others)[1] == INVALID


@pytest.mark.usefixtures("nothing_is_logged")
def test_a_full_queue_refuses_before_anything_is_computed(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models["encode"], "_max_queue", 0)
    for name in "abcd":
        assert models["encode"].execute([pb_utils.Request(**inputs(JOB_ID=name))])[0].error is None
    batches = list(models["bundle"].by_graph["text_encoder"].batches)
    said, code = message(models["encode"].execute([pb_utils.Request(**inputs())])[0])
    assert said.startswith("the queue is full: 4 jobs wait, and one more would begin in about 0 s")
    assert code == pb_utils.TritonError.UNAVAILABLE
    assert models["bundle"].by_graph["text_encoder"].batches == batches

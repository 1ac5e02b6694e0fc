"""`render`: from a plan to latents, and what it tells when that fails."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, encoded, load, message, phase
from tests.samples.waiting import PATIENCE_S, comes


def test_a_request_through_all_models(models: dict[str, Any]) -> None:
    arrays = encoded(models, JOB_ID="j", STEPS=3, SEED=5, WIDTH=96)
    assert arrays["TEXT"].shape == (1, 2, 16, 8)
    assert phase(models, "j") == "queued"
    rendered = models["render"].execute([pb_utils.Request(**arrays)])[0].arrays()
    assert rendered["LATENTS"].shape == (1, 4, 32, 24)
    assert phase(models, "j") == "decoding"
    request = pb_utils.Request(PLAN=arrays["PLAN"], **rendered)
    decoded = models["decode"].execute([request])[0].arrays()
    assert decoded["IMAGE"].shape == (1, 128, 96, 3)
    assert decoded["IMAGE"].dtype == np.uint8
    info = json.loads(decoded["INFO"][0, 0])
    assert (info["job_id"], info["seed"], info["ticks"], info["width"]) == ("j", 5, 3, 96)
    assert phase(models, "j") == "done"


def to_record(models: dict[str, Any], job_id: str) -> dict[str, Any]:
    """Inputs of `render` for an edit whose template has not been recorded."""
    given = edit_inputs(STEPS=4, MODE="sparse", JOB_ID=job_id)
    arrays = models["encode"].execute([pb_utils.Request(**given)])[0].arrays()
    del arrays["PIXELS"]
    return dict(arrays)


def test_cancelling_an_edit_does_not_wait_for_its_recording(
    sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = to_record(sparse_models, "j")
    begun, going_on, recorded = threading.Event(), threading.Event(), threading.Event()

    def record(arrays: dict[str, Any]) -> pb_utils.InferenceResponse:
        begun.set()
        assert going_on.wait(PATIENCE_S)
        recorded.set()
        return pb_utils.InferenceResponse([pb_utils.Tensor("RESULT", np.array([[b"{}"]], object))])

    monkeypatch.setitem(pb_utils.BLS, "templates", record)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(sparse_models["render"].execute, [pb_utils.Request(**arrays)])
        assert begun.wait(PATIENCE_S)
        comes(lambda: sparse_models["board"]._rows["seen"].any())  # it is still there, and says so
        sparse_models["board"].cancel("j")
        (response,) = answer.result(30)
    assert message(response) == ("job j was cancelled", pb_utils.TritonError.CANCELLED)
    assert phase(sparse_models, "j") == "cancelled"
    going_on.set()
    assert recorded.wait(PATIENCE_S)  # somebody else may wait for it


def test_an_edit_is_told_why_its_template_was_not_recorded(
    sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = pb_utils.TritonError("[UNAVAILABLE] the disk is full")
    answer = pb_utils.InferenceResponse(error=error)
    monkeypatch.setitem(pb_utils.BLS, "templates", lambda arrays: answer)
    request = pb_utils.Request(**to_record(sparse_models, "j"))
    response = sparse_models["render"].execute([request])[0]
    assert message(response) == ("the disk is full", pb_utils.TritonError.UNAVAILABLE)
    assert phase(sparse_models, "j") == "failed"


def test_an_answer_without_its_tensors_is_a_restart(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a server that is about to end."""
    latents = pb_utils.Tensor("LATENTS", np.zeros((1, 4, 32, 24), np.float32))
    answer = pb_utils.InferenceResponse([latents])
    monkeypatch.setitem(pb_utils.BLS, "denoise", lambda arrays: answer)
    response = models["render"].execute([pb_utils.Request(**encoded(models, JOB_ID="j"))])[0]
    sentence = "the denoise model is being restarted; try again in a few seconds"
    assert message(response) == (sentence, pb_utils.TritonError.UNAVAILABLE)
    assert phase(models, "j") == "failed"


def test_a_job_cancelled_while_queued_never_starts(models: dict[str, Any]) -> None:
    arrays = encoded(models, JOB_ID="j")
    models["board"].cancel("j")
    response = models["render"].execute([pb_utils.Request(**arrays)])[0]
    assert message(response)[1] == pb_utils.TritonError.CANCELLED
    assert phase(models, "j") == "cancelled"
    assert models["board"].tick == 0


def test_a_failing_step_fails_its_request_with_an_id(models: dict[str, Any]) -> None:
    def explode(inputs: Any) -> dict[str, torch.Tensor]:
        raise RuntimeError("out of memory")

    models["bundle"].by_graph["unet_decoder"]._run = explode
    arrays = encoded(models, JOB_ID="j")
    response = models["render"].execute([pb_utils.Request(**arrays)])[0]
    assert message(response)[0].startswith("internal error")
    assert phase(models, "j") == "failed"


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (
            pb_utils.TritonError("Stub process 'denoise_0_0' is not healthy."),
            "the denoise model is being restarted; try again in a few seconds",
            pb_utils.TritonError.UNAVAILABLE,
        ),
        (
            pb_utils.TritonError("[request id: j] Exceeds maximum queue size"),
            "the queue of the denoise model is full; try again later",
            pb_utils.TritonError.UNAVAILABLE,
        ),
        (
            pb_utils.TritonError("[CANCELLED] job j was cancelled after 2 steps"),
            "job j was cancelled after 2 steps",
            pb_utils.TritonError.CANCELLED,
        ),
    ],
    ids=["dead process", "full queue", "cancelled"],
)
def test_render_passes_errors_on(
    models: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    error: pb_utils.TritonError,
    sentence: str,
    code: int,
) -> None:
    answer = pb_utils.InferenceResponse(error=error)
    monkeypatch.setattr(load("denoise"), "BURST_S", 0.0)
    monkeypatch.setitem(pb_utils.BLS, "denoise", lambda arrays: answer)
    response = models["render"].execute([pb_utils.Request(**encoded(models, JOB_ID="j"))])[0]
    assert message(response) == (sentence, code)
    cancelled = code == pb_utils.TritonError.CANCELLED
    assert phase(models, "j") == ("cancelled" if cancelled else "failed")

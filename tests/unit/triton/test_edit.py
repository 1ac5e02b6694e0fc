"""`edit`: one request through all models."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, message, phase


def test_an_edit_through_all_models(models: dict[str, Any]) -> None:
    given = edit_inputs(JOB_ID="j", STEPS=8, SEED=5, strength=0.5)
    decoded = models["edit"].execute([pb_utils.Request(**given)])[0].arrays()
    assert models["board"].status("j").total == 4
    assert phase(models, "j") == "done"
    outside = given["MASK"] < 128
    assert (decoded["IMAGE"][outside] == given["IMAGE"][outside]).all()
    assert (decoded["IMAGE"] != given["IMAGE"]).any()
    info = json.loads(decoded["INFO"][0, 0])
    assert (info["mode"], info["ticks"], info["steps"]) == ("dense", 4, 8)
    assert info["mask_ratio"] == 0.125
    assert info["template"]


def test_the_border_of_an_edit(models: dict[str, Any]) -> None:
    """The defaults are what all edits had; outside nothing changes."""

    def edited(**options: Any) -> Any:
        given = edit_inputs(STEPS=4, SEED=5, **options)
        arrays = models["edit"].execute([pb_utils.Request(**given)])[0].arrays()
        assert (arrays["IMAGE"] == given["IMAGE"])[given["MASK"] < 128].all()
        return arrays["IMAGE"]

    plain = edited()
    assert (plain == edited(MASK_FEATHER=4, MASK_TONE="drawn")).all()
    others = [edited(MASK_FEATHER=12), edited(MASK_TONE="matched")]
    assert all((plain != other).any() for other in others)
    assert (plain == edited()).all()


def test_errors_keep_their_status_on_the_way_through_edit(models: dict[str, Any]) -> None:
    given = edit_inputs(JOB_ID="j")
    given["MASK"] = np.zeros_like(given["MASK"])
    sentence, code = message(models["edit"].execute([pb_utils.Request(**given)])[0])
    assert sentence.startswith("MASK has no pixel of 128 or more; accepted")
    assert code == pb_utils.TritonError.INVALID_ARG
    given = edit_inputs(JOB_ID="j")
    models["board"].open("j", 1)
    assert message(models["edit"].execute([pb_utils.Request(**given)])[0])[1] == code

    def explode(inputs: Any) -> dict[str, torch.Tensor]:
        raise RuntimeError("out of memory")

    models["bundle"].by_graph["vae_decoder"]._run = explode
    sentence, code = message(
        models["edit"].execute([pb_utils.Request(**edit_inputs(JOB_ID="k"))])[0]
    )
    assert sentence.startswith("internal error")
    assert code == pb_utils.TritonError.INTERNAL
    assert phase(models, "k") == "failed"


def test_an_edits_timeout_counts_in_the_queue_of_encode_too(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that the job is on the board, where its client can cancel it."""
    models["edit"].execute([pb_utils.Request(timeout=70_000_000, **edit_inputs())])
    assert pb_utils.TIMEOUTS["encode"] == 70_000_000
    assert {pb_utils.TIMEOUTS[name] for name in ("denoise", "decode")} == {0}

    def expire(arrays: Any) -> pb_utils.InferenceResponse:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("Request timeout expired"))

    monkeypatch.setitem(pb_utils.BLS, "encode", expire)
    response = models["edit"].execute([pb_utils.Request(**edit_inputs())])[0]
    assert message(response) == ("Request timeout expired", pb_utils.TritonError.UNAVAILABLE)


def test_a_sparse_edit_waits_for_its_recording(sparse_models: dict[str, Any]) -> None:
    given = edit_inputs(STEPS=4, MODE="sparse", SCHEDULER="ddim")
    for _ in range(2):  # the second finds what the first had made
        response = sparse_models["edit"].execute([pb_utils.Request(**given)])[0]
        assert response.error is None, response.error
        assert len(sparse_models["recorder"].keys) == 2
    negative, own = sparse_models["recorder"].keys
    assert (own.steps, own.scheduler, own.bundle) == (4, "ddim", sparse_models["digest"])
    assert not negative.text
    assert own == negative.with_text(own.text)


def test_a_fast_edit_waits_for_the_recording_without_a_prompt(
    sparse_models: dict[str, Any],
) -> None:
    given = edit_inputs(STEPS=4, MODE="sparse", EDIT_QUALITY="fast")
    assert sparse_models["edit"].execute([pb_utils.Request(**given)])[0].error is None
    (key,) = sparse_models["recorder"].keys
    assert not key.text


def test_an_automatic_edit_asks_for_a_recording_and_does_not_wait(
    sparse_models: dict[str, Any],
) -> None:
    response = sparse_models["edit"].execute([pb_utils.Request(**edit_inputs(STEPS=4))])[0]
    template = json.loads(response.arrays()["INFO"][0, 0])["template"]
    store = sparse_models["templates"]._store
    assert not sparse_models["recorder"].keys
    wanted = store.notes.keys(sparse_models["digest"])
    assert [k.template for k in wanted] == [template] * 2
    assert [bool(k.text) for k in wanted] == [False, True]  # the empty negative prompt's first
    assert store.texts.get(wanted[1].digest)["hidden"].shape[-1] == 8
    again = edit_inputs(STEPS=4, TEMPLATE=template)
    image = again.pop("IMAGE")
    found = sparse_models["edit"].execute([pb_utils.Request(**again)])[0].arrays()
    outside = again["MASK"] < 128
    assert (found["IMAGE"][outside] == image[outside]).all()


def test_a_dense_edit_leaves_nothing_behind(sparse_models: dict[str, Any]) -> None:
    sparse_models["edit"].execute([pb_utils.Request(**edit_inputs(STEPS=2, MODE="dense"))])
    store = sparse_models["templates"]._store
    assert store.pictures.known() == store.notes.keys(sparse_models["digest"]) == []

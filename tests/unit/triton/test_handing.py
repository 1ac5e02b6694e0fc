"""What models hand on to each other: what is corrupted on its way ends its request, and clients may
send it again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import (
    denoised,
    edit_inputs,
    encoded,
    message,
    phase,
    sequence,
)

Arrays = dict[str, Any]
TENSORS = ("TEXT", "POOLED", "CLEAN", "ACTIVE", "MASKED", "CONTROL")
UNAVAILABLE = pb_utils.TritonError.UNAVAILABLE


def damaged(array: np.ndarray[Any, Any], byte: int = 1) -> np.ndarray[Any, Any]:
    """The same with its first bytes changed: the lowest bit of one, or all that make a NaN."""
    copy = array.copy()
    copy.reshape(-1).view(np.uint8)[: 4 if byte == 255 else 1] ^= np.uint8(byte)
    return copy


@pytest.mark.parametrize("byte", [1, 255])
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_on_their_way_to_render(models: dict[str, Any], name: str, byte: int) -> None:
    arrays = encoded(models, JOB_ID="j", STEPS=2)
    spoiled = arrays | {name: damaged(arrays[name], byte)}
    answer = models["render"].execute([pb_utils.Request(**spoiled)])[0]
    assert message(answer) == (
        f"{name} was corrupted on its way; send the request again",
        UNAVAILABLE,
    )
    assert phase(models, "j") == "failed"


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_on_their_way_to_denoise(models: dict[str, Any], name: str) -> None:
    arrays = encoded(models, JOB_ID="j", STEPS=3)
    spoiled = arrays | {name: damaged(arrays[name]), "QUEUED_TICK": np.array([[0]])}
    beside = sequence(models, 2, STEPS=2)
    answer, _ = models["denoise"].execute([pb_utils.Request(1, True, **spoiled), beside])
    said, code = message(answer)
    assert said == f"[UNAVAILABLE] {name} was corrupted on its way; send the request again"
    assert code == UNAVAILABLE
    assert models["denoise"].execute([beside])[0].error is None


def test_a_plan_on_its_way_to_denoise(models: dict[str, Any]) -> None:
    arrays = encoded(models, STEPS=3) | {"QUEUED_TICK": np.array([[0]])}
    arrays["PLAN"] = np.array([[arrays["PLAN"][0, 0][:-1]]], object)
    said, code = message(models["denoise"].execute([pb_utils.Request(1, True, **arrays)])[0])
    assert said == "[UNAVAILABLE] PLAN was corrupted on its way; send the request again"
    assert code == UNAVAILABLE


@pytest.mark.parametrize("name", ["IMAGE", "MASK"])
def test_inputs_on_their_way_from_edit_to_encode(
    models: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = pb_utils.BLS["encode"]

    def spoiling(arrays: Arrays) -> pb_utils.InferenceResponse:
        return right(arrays | {name: damaged(arrays[name])})

    monkeypatch.setitem(pb_utils.BLS, "encode", spoiling)
    answer = models["edit"].execute([pb_utils.Request(**edit_inputs())])[0]
    said, code = message(answer)
    assert said == f"{name} was corrupted on its way; send the request again"
    assert code == UNAVAILABLE
    assert models["board"].running() == 0


def test_a_plan_on_its_way_to_edit(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right = pb_utils.BLS["encode"]

    def spoiling(arrays: Arrays) -> pb_utils.InferenceResponse:
        made = right(arrays).arrays()
        made["PLAN"] = np.array([[made["PLAN"][0, 0][:-1]]], object)
        return pb_utils.InferenceResponse([pb_utils.Tensor(*item) for item in made.items()])

    monkeypatch.setitem(pb_utils.BLS, "encode", spoiling)
    answer = models["edit"].execute([pb_utils.Request(**edit_inputs())])[0]
    assert message(answer) == ("PLAN was corrupted on its way; send the request again", UNAVAILABLE)


def test_what_was_corrupted_is_in_the_log_once(models: dict[str, Any]) -> None:
    arrays = encoded(models, JOB_ID="j", STEPS=2)
    before = len(pb_utils.Logger.lines)
    models["render"].execute([pb_utils.Request(**arrays | {"TEXT": damaged(arrays["TEXT"])})])
    (line,) = pb_utils.Logger.lines[before:]
    assert "TEXT was corrupted on its way" in line


def edited(models: dict[str, Any]) -> Arrays:
    """What `decode` gets for an edit, but the parameters of the call."""
    given = edit_inputs(JOB_ID="j")
    arrays = models["encode"].execute([pb_utils.Request(**given)])[0].arrays()
    right = denoised(arrays, np.zeros((1, 4, 24, 16), np.float32))
    return right | {name: arrays[name] for name in ("PLAN", "PIXELS")} | {"MASK": given["MASK"]}


def decoded(models: dict[str, Any], arrays: Arrays, mask: Any) -> pb_utils.InferenceResponse:
    """The answer of `decode` to a call of `edit`, whose mask this was."""
    called = {"tensor_sums": json.dumps({"MASK": zlib.crc32(mask)})}
    request = pb_utils.Request(called=True, parameters=called, **arrays)
    answer: pb_utils.InferenceResponse = models["decode"].execute([request])[0]
    return answer


@pytest.mark.parametrize("name", ["LATENTS", "PIXELS", "MASK"])
def test_tensors_on_their_way_to_decode(models: dict[str, Any], name: str) -> None:
    arrays = edited(models)
    answer = decoded(models, arrays | {name: damaged(arrays[name])}, arrays["MASK"])
    said, code = message(answer)
    assert said.endswith(f"{name} was corrupted on its way; send the request again")
    assert code == UNAVAILABLE
    assert phase(models, "j") == "failed"


def test_what_is_whole_is_decoded(models: dict[str, Any]) -> None:
    arrays = edited(models)
    assert decoded(models, arrays, arrays["MASK"]).error is None


def test_another_jobs_latents_and_stats_are_not_drawn(models: dict[str, Any]) -> None:
    other = denoised(encoded(models, JOB_ID="k"), np.ones((1, 4, 24, 16), np.float32))
    arrays = edited(models)
    said, code = message(decoded(models, arrays | other, arrays["MASK"]))
    assert said.endswith("STATS was corrupted on its way; send the request again")
    assert code == UNAVAILABLE


SPOILED: dict[str, Callable[[Arrays], Arrays]] = {
    "IMAGE": lambda a: a | {"IMAGE": damaged(a["IMAGE"])},
    "INFO": lambda a: a | {"INFO": np.array([[a["INFO"][0, 0][:-9]]], object)},
}


@pytest.mark.parametrize("name", SPOILED)
def test_answers_of_decode_on_their_way_to_edit(
    models: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = pb_utils.BLS["decode"]

    def spoiling(arrays: Arrays) -> pb_utils.InferenceResponse:
        made = SPOILED[name](right(arrays).arrays())
        return pb_utils.InferenceResponse([pb_utils.Tensor(*item) for item in made.items()])

    monkeypatch.setitem(pb_utils.BLS, "decode", spoiling)
    answer = models["edit"].execute([pb_utils.Request(**edit_inputs(JOB_ID="j"))])[0]
    assert message(answer) == (
        f"{name} was corrupted on its way; send the request again",
        UNAVAILABLE,
    )


def test_a_picture_says_its_checksum(models: dict[str, Any]) -> None:
    framed: Arrays = {"PADDING_MASK_CROP": np.array([[8]], np.int32)}
    unframed: Arrays = {}
    for more in (unframed, framed):
        answer = models["edit"].execute([pb_utils.Request(**edit_inputs(), **more)])[0].arrays()
        info = json.loads(answer["INFO"][0, 0])
        assert info["image_crc32"] == zlib.crc32(answer["IMAGE"])

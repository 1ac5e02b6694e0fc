"""Internal models: what somebody sends them who reaches Triton's port, and is not this server."""

from __future__ import annotations

import dataclasses
import json
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
    plan_in,
    sequence,
    signed,
    summed,
)
from tests.samples.requests import inputs

FORBIDDEN = (
    "this model takes requests from the server's own models only; send yours to generate or edit",
    pb_utils.TritonError.INVALID_ARG,
)
INVALID = pb_utils.TritonError.INVALID_ARG
QUEUED = np.array([[0]], np.int64)
STATS = np.array([[b'{"engine_ms": 0.0}']], object)

Arrays = dict[str, Any]


@pytest.fixture(autouse=True)
def no_traceback_is_logged() -> Any:
    """The fault is the caller's."""
    before = list(pb_utils.Logger.lines)
    yield
    new = pb_utils.Logger.lines[len(before) :]
    assert [line for line in new if "corrupted on its way" not in line] == []


def unsigned(arrays: Arrays, **changes: Any) -> Arrays:
    """A stranger's plan: everything that `encode` would say, but its MAC."""
    plan = dataclasses.asdict(plan_in(arrays)) | changes
    return arrays | {"PLAN": np.array([[("0" * 32 + json.dumps(plan)).encode()]], object)}


FORGED: dict[str, dict[str, Any]] = {
    "scheduler": {"scheduler": "x"},
    "no steps": {"steps": 0},
    "slot": {"slot": 99_999},
    "key": {"extra": 1},
    "guidance": {"guidance": float("nan")},
    "first step": {"first_step": -3},
    "a ControlNet without an image": {
        "controls": [{"name": "edges", "scale": 1.0, "start": 0.0, "end": 1.0}]
    },
    "none of it": {},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED.keys())
@pytest.mark.parametrize("model", ["render", "denoise", "decode"])
def test_a_forged_plan_is_refused_and_harms_nobody(
    models: dict[str, Any], model: str, changes: dict[str, Any]
) -> None:
    victim = encoded(models, JOB_ID="j", STEPS=2)
    arrays = unsigned(victim, **changes) | {"QUEUED_TICK": QUEUED, "STATS": STATS}
    arrays |= {"LATENTS": np.zeros((1, 4, 32, 32), np.float32)}
    response = models[model].execute([pb_utils.Request(7, **arrays)])[0]
    assert message(response) == FORBIDDEN
    assert phase(models, "j") == "queued"
    rendered = models["render"].execute([pb_utils.Request(**victim)])[0]
    assert rendered.error is None


@pytest.mark.parametrize("text", [b"", b"{}", b"nonsense", b"\xff" * 40, b"0" * 32 + b"{}"])
@pytest.mark.parametrize("model", ["render", "decode"])
def test_what_is_no_plan_is_refused(models: dict[str, Any], model: str, text: bytes) -> None:
    arrays = encoded(models) | {"PLAN": np.array([[text]], object)}
    assert message(models[model].execute([pb_utils.Request(**arrays)])[0]) == FORBIDDEN


def test_denoise_takes_a_signed_plan_from_its_own_server_only(models: dict[str, Any]) -> None:
    arrays = encoded(models, JOB_ID="j", STEPS=9)
    response = models["denoise"].execute([pb_utils.Request(1, **arrays, QUEUED_TICK=QUEUED)])[0]
    assert message(response) == FORBIDDEN


def test_a_stranger_with_a_running_requests_id_gets_nothing_of_it(models: dict[str, Any]) -> None:
    running = sequence(models, 1, STEPS=9, JOB_ID="j")
    assert models["denoise"].execute([running]) == [None]
    stranger = pb_utils.Request(1, **encoded(models), QUEUED_TICK=QUEUED)
    answers = models["denoise"].execute([stranger, running])
    assert message(answers[0]) == FORBIDDEN
    assert answers[1] is None
    assert models["board"].status("j").step == 2


def test_decode_shows_previews_to_its_own_server_only(models: dict[str, Any]) -> None:
    latents = np.zeros((1, 4, 16, 16), np.float32)
    assert message(models["decode"].execute([pb_utils.Request(LATENTS=latents)])[0]) == FORBIDDEN
    shown = models["decode"].execute([pb_utils.Request(0, True, LATENTS=latents)])[0].arrays()
    assert shown["IMAGE"].shape == (1, 64, 64, 3)


SPOILED: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "a branch too few": (lambda a: {"TEXT": a["TEXT"][:, :1]}, "TEXT has the shape (1, 16, 8);"),
    "no tokens": (lambda a: {"TEXT": a["TEXT"][:, :, :0]}, "TEXT has the shape (2, 0, 8); "),
    "narrow": (lambda a: {"TEXT": a["TEXT"][..., :7]}, "TEXT has the shape (2, 16, 7); "),
    "NaN": (lambda a: {"TEXT": a["TEXT"] * np.nan}, "TEXT has numbers that are not finite; "),
    "infinite": (lambda a: {"POOLED": a["POOLED"] + np.inf}, "POOLED has numbers that are not"),
    "template": (lambda a: {"CLEAN": np.zeros((1, 4, 9, 9), np.float32)}, "CLEAN has the shape"),
    "mask": (
        lambda a: {"ACTIVE": np.zeros((1, 9, 9), np.float32)},
        "ACTIVE has the shape (9, 9); ",
    ),
    "masked": (lambda a: {"MASKED": np.zeros((1, 5, 9, 9), np.float32)}, "MASKED has the shape"),
    "image": (lambda a: {"CONTROL": np.zeros((1, 2, 8, 8, 3), np.uint8)}, "CONTROL has the shape"),
}


@pytest.mark.parametrize(("spoil", "sentence"), SPOILED.values(), ids=SPOILED.keys())
def test_render_checks_what_comes_with_a_plan(
    models: dict[str, Any], spoil: Callable[[Arrays], Arrays], sentence: str
) -> None:
    arrays = encoded(models, JOB_ID="j")
    spoiled = summed(arrays | spoil(arrays))
    said, code = message(models["render"].execute([pb_utils.Request(**spoiled)])[0])
    assert said.startswith(sentence)
    assert code == INVALID
    assert phase(models, "j") == "failed"


DECODED: dict[str, tuple[Arrays, str]] = {
    "size": ({"LATENTS": np.zeros((1, 4, 8, 8), np.float32)}, "LATENTS has the shape (4, 8, 8); "),
    "NaN": ({"LATENTS": np.full((1, 4, 24, 16), np.nan, np.float32)}, "LATENTS has numbers"),
    "picture": ({"PIXELS": np.zeros((1, 8, 8, 3), np.uint8)}, "PIXELS has the shape (8, 8, 3); "),
    "mask": ({"MASK": np.zeros((1, 8, 8), np.uint8)}, "MASK has the shape (8, 8); accepted: "),
}


@pytest.mark.parametrize(("spoiled", "sentence"), DECODED.values(), ids=DECODED.keys())
def test_decode_checks_what_comes_with_a_plan(
    models: dict[str, Any], spoiled: Arrays, sentence: str
) -> None:
    given = edit_inputs(JOB_ID="j")
    arrays = models["encode"].execute([pb_utils.Request(**given)])[0].arrays()
    latents = spoiled.get("LATENTS", np.zeros((1, 4, 24, 16), np.float32))
    right: Arrays = denoised(arrays, latents)
    right |= {name: arrays[name] for name in ("PLAN", "PIXELS")} | {"MASK": given["MASK"]}
    said, code = message(models["decode"].execute([pb_utils.Request(**right | spoiled)])[0])
    assert said.startswith(sentence)
    assert code == INVALID
    assert phase(models, "j") == "failed"


@pytest.mark.parametrize("stats", [b"", b"{", b"[1]", b"[" * 100_000])
def test_what_was_lost_between_denoise_and_decode_can_be_asked_for_again(
    models: dict[str, Any], stats: bytes
) -> None:
    """A user's request was right: clients repeat what is unavailable, not what is invalid."""
    arrays = encoded(models, JOB_ID="j", STEPS=2)
    rendered = models["render"].execute([pb_utils.Request(**arrays)])[0].arrays()
    rendered["STATS"] = np.array([[stats]], object)
    lost = pb_utils.Request(PLAN=arrays["PLAN"], **rendered)
    sentence, code = message(models["decode"].execute([lost])[0])
    assert sentence == "STATS was corrupted on its way; send the request again"
    assert code == pb_utils.TritonError.UNAVAILABLE
    assert phase(models, "j") == "failed"


def test_a_plan_cannot_be_used_again_once_its_job_has_ended(models: dict[str, Any]) -> None:
    arrays = encoded(models, JOB_ID="j", STEPS=2)
    rendered = models["render"].execute([pb_utils.Request(**arrays)])[0].arrays()
    last = pb_utils.Request(PLAN=arrays["PLAN"], **rendered)
    assert models["decode"].execute([last])[0].error is None
    sentence, code = message(models["render"].execute([pb_utils.Request(**arrays)])[0])
    assert sentence == "job j is not on the board; send the request again"
    assert code == pb_utils.TritonError.UNAVAILABLE


def test_a_request_whose_time_is_over_leaves_at_the_next_tick(models: dict[str, Any]) -> None:
    hurried = encoded(models, JOB_ID="j", STEPS=50)
    plan = dataclasses.replace(plan_in(hurried), deadline=1.0)
    request = pb_utils.Request(1, True, **hurried | {"PLAN": signed(plan)}, QUEUED_TICK=QUEUED)
    stays = sequence(models, 2, STEPS=50)
    late, still = models["denoise"].execute([request, stays])
    assert still is None
    assert message(late)[0].startswith("[UNAVAILABLE] the time of job j was over")


def test_a_timeout_becomes_the_deadline(models: dict[str, Any]) -> None:
    request = pb_utils.Request(timeout=70_000_000, **inputs())
    plan = plan_in(models["encode"].execute([request])[0].arrays())
    assert plan.deadline == pytest.approx(plan.started + 70)
    assert plan_in(encoded(models)).deadline == 0

"""A line of JSON for each request that has ended."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import edit_inputs, encoded, load, sequence, summed
from tests.samples.requests import inputs


@pytest.fixture
def logged(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in ("encode", "decode", "denoise", "edit"):
        monkeypatch.setattr(models[name]._endings, "_on", True)
    monkeypatch.setattr(models["render"]._renderer._endings, "_on", True)
    return models


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[0] == "{"]


def test_a_picture_tells_its_times_and_sizes_and_no_prompt(
    logged: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    given = edit_inputs(JOB_ID="a", STEPS=3, PROMPT="a secret")
    assert logged["edit"].execute([pb_utils.Request(**given)])[0].error is None
    (line,) = lines(capfd)
    assert (line["kind"], line["job_id"], line["outcome"]) == ("edit", "a", "done")
    assert (line["width"], line["height"], line["steps"]) == (64, 96, 3)
    assert (line["loras"], line["controls"], line["mode"]) == ([], [], "dense")
    assert 0 < line["denoise_ms"] < line["total_ms"]
    assert "secret" not in str(line)


def test_prompts_are_told_where_that_is_wanted(
    logged: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logged["encode"], "_log_prompts", True)
    given = edit_inputs(PROMPT="a secret" + "x" * 1000, NEGATIVE_PROMPT="blue")
    assert logged["edit"].execute([pb_utils.Request(**given)])[0].error is None
    (line,) = lines(capfd)
    assert line["prompt"] == ("a secret" + "x" * 1000)[:500]
    assert line["negative_prompt"] == "blue"


def test_a_refused_request_tells_its_field(
    logged: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    request = pb_utils.Request(**inputs(JOB_ID="a", PROMPT="secret" * 1000))
    logged["encode"].execute([request])
    (line,) = lines(capfd)
    del line["time"]
    assert line == {
        "kind": "generate",
        "job_id": "a",
        "outcome": "refused",
        "error": "InvalidInput",
        "field": "PROMPT",
    }


def test_a_job_that_ends_early_has_one_line(
    logged: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """`denoise` and `render` both see its end."""
    arrays = encoded(logged, JOB_ID="a")
    logged["board"].cancel("a")
    logged["render"].execute([pb_utils.Request(**arrays)])
    spoiled = encoded(logged, JOB_ID="b")
    spoiled["TEXT"] = spoiled["TEXT"] * np.nan
    spoiled = summed(spoiled)
    logged["render"].execute([pb_utils.Request(**spoiled)])
    ends = [(line["job_id"], line["outcome"]) for line in lines(capfd)]
    assert ends == [("a", "cancelled"), ("b", "refused")]


def test_an_edit_that_is_refused_at_once_tells_its_job(
    logged: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    given = edit_inputs(JOB_ID="a")
    logged["edit"].execute([pb_utils.Request(parameters={"lora_policy": 1.5}, **given)])
    (line,) = lines(capfd)
    assert (line["kind"], line["job_id"], line["field"]) == ("edit", "a", "lora_policy")


def test_a_job_that_triton_dropped_has_a_line(
    logged: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise = logged["denoise"]
    lost, kept = (sequence(logged, i, STEPS=50, JOB_ID=f"j{i}") for i in range(2))
    denoise.execute([lost, kept])
    monkeypatch.setattr(load("denoise"), "MAX_REGROUPS", 0)
    denoise._seen[0] -= load("denoise").VANISHED_S + 1
    denoise.execute([kept])
    (line,) = lines(capfd)
    assert (line["job_id"], line["outcome"], line["error"]) == ("j0", "failed", "InternalError")
    assert any("Triton has dropped job j0" in each for each in pb_utils.Logger.lines)


def test_client_log_and_traceback_share_an_id(
    logged: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(arrays: dict[str, Any]) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(logged["decode"], "_picture", broken)
    pb_utils.Logger.lines.clear()
    response = logged["edit"].execute([pb_utils.Request(**edit_inputs())])[0]
    (line,) = lines(capfd)
    assert (line["outcome"], line["error"]) == ("failed", "InternalError")
    assert f"internal error {line['error_id']};" in response.error.message()
    (traceback,) = [each for each in pb_utils.Logger.lines if "RuntimeError" in each]
    assert line["error_id"] in traceback
    assert "secret" not in str(line)


def test_names_that_are_no_text_are_logged(models: dict[str, Any]) -> None:
    """As of a bundle's folder, in a locale without them."""
    from tessera.triton import pb

    pb.log("the folder mod\udcc3\udca8le")
    assert pb_utils.Logger.lines[-1] == "tessera: the folder mod\\udcc3\\udca8le"

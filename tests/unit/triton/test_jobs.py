"""`jobs`: what it does not know."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.calls import message
from tests.samples.requests import inputs


@pytest.mark.parametrize(
    ("values", "sentence", "code"),
    [
        ({"ACTION": "stop"}, "ACTION is 'stop'", pb_utils.TritonError.INVALID_ARG),
        ({"ACTION": "status"}, "JOB_ID is 'nobody'", pb_utils.TritonError.NOT_FOUND),
    ],
    ids=["action", "job"],
)
def test_jobs_names_what_it_does_not_know(
    models: dict[str, Any], values: dict[str, str], sentence: str, code: int
) -> None:
    request = pb_utils.Request(**inputs(**values, JOB_ID="nobody"))
    text, status = message(models["jobs"].execute([request])[0])
    assert text.startswith(sentence)
    assert status == code

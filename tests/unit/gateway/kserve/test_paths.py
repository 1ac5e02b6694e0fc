"""Which paths lead to Triton."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.contract import MODELS
from tessera_gateway.kserve.limits import Refused
from tessera_gateway.kserve.paths import find_target

OPEN = {
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    *(
        (method, f"/v2/models/{model}{version}{action}")
        for model in MODELS
        for version in ("", "/versions/1")
        for method, action in (
            ("GET", ""),
            ("GET", "/ready"),
            ("GET", "/config"),
            ("GET", "/stats"),
            ("POST", "/infer"),
            ("POST", "/generate"),
        )
    ),
}


@pytest.mark.parametrize(("method", "path"), sorted(OPEN))
def test_open_paths_are_passed_on_as_they_are(method: str, path: str) -> None:
    assert find_target(method, path).path == path


@pytest.mark.parametrize(
    "path",
    [
        "/v2/",
        "/v2/models",
        "/v2/models/stats",
        "/v2/models/generate/",
        "/v2/models/generate/versions/2/infer",
        "/v2/models/generate/versions/1/../../../encode/infer",
        "/v2/models/generate/../encode/infer",
        "/v2/models/generate%2f..%2fencode/infer",
        "/v2/models/encode/infer",
        "/v2/models/generate/infer\n",
        "/v2/models/generate/generate_stream",
        "/v2/models/generate/trace/setting",
        "//v2/models/generate/infer",
        "/V2/models/generate/infer",
    ],
)
def test_others_are_not_there(path: str) -> None:
    for method in ("GET", "POST"):
        with pytest.raises(Refused) as caught:
            find_target(method, path)
        assert caught.value.status == 404


@pytest.mark.parametrize(("method", "path"), sorted(OPEN))
def test_by_another_method_they_are_refused(method: str, path: str) -> None:
    for other in {"GET", "POST", "PUT", "DELETE", "HEAD", "X" * 99} - {method}:
        with pytest.raises(Refused) as caught:
            find_target(other, path)
        assert caught.value.status == 405


@given(path=st.from_regex(r"\A/v2(/[a-z0-9._%~-]{0,12}){0,6}\Z"))
def test_nothing_else_is_open(path: str) -> None:
    try:
        target = find_target("GET", path)
    except Refused:
        return
    assert ("GET", target.path) in OPEN

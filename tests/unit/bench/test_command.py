"""`python -m bench NAME`."""

from __future__ import annotations

import sys

import pytest

from bench import edit_latency
from bench.__main__ import BENCHES, run


@pytest.mark.parametrize("given", [[], ["demo", "--rounds", "1"]])
def test_a_benchmark_has_its_own_options_unless_others_are_given(
    monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    lines: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["bench"])
    monkeypatch.setattr(edit_latency, "main", lambda: lines.append([*sys.argv]))
    run("edits-sdxl", given)
    own = BENCHES["edits-sdxl"].options
    assert own[0] == "sdxl"
    assert lines == [["bench edits-sdxl", *(given or own)]]

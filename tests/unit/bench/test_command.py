"""`python -m bench NAME`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bench import __main__, edit_latency
from bench.__main__ import BENCHES, run, run_each


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


def test_one_that_fails_does_not_end_the_run_of_several(tmp_path: Path) -> None:
    last = tmp_path / "last"
    lines = {
        "works": [sys.executable, "-c", ""],
        "fails": [sys.executable, "-c", "raise SystemExit(3)"],
        "last": [sys.executable, "-c", f"open({str(last)!r}, 'w')"],
    }
    assert run_each(lines) == ["fails"]
    assert last.exists()


def test_what_failed_is_named_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fails_at_edits(lines: Mapping[str, Sequence[str]]) -> list[str]:
        asked.extend(lines)
        return ["edits"]

    monkeypatch.setattr(sys, "argv", ["bench", "quick"])
    monkeypatch.setattr(__main__, "run_each", fails_at_edits)
    with pytest.raises(SystemExit, match="failed: edits"):
        __main__.main()
    assert asked == [name for name, bench in BENCHES.items() if bench.by == "quick"]

"""Spans of the trace file."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tessera import trace


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(trace, "_descriptor", -1)
    monkeypatch.setattr(trace, "_path", tmp_path / "trace.json")
    return tmp_path / "trace.json"


def spans(file: Path) -> list[dict[str, Any]]:
    events = json.loads(file.read_text().rstrip().rstrip(",") + "]")
    return [event for event in events if event["ph"] == "X"]


def test_spans_lie_within_each_other(file: Path) -> None:
    with trace.span("outer"):
        with trace.span("first", rows=2):
            pass
        with trace.span("second"):
            pass
    found = {event["name"]: event for event in spans(file)}
    assert set(found) == {"outer", "first", "second"}
    assert found["first"]["args"] == {"rows": 2}
    outer = found["outer"]
    for name in ("first", "second"):
        inner = found[name]
        assert outer["ts"] <= inner["ts"]
        assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
    assert found["first"]["ts"] + found["first"]["dur"] <= found["second"]["ts"]


def test_nothing_is_written_while_a_span_lasts(file: Path) -> None:
    with trace.span("outer"):
        with trace.span("inner"):
            pass
        assert not file.exists()
    assert len(spans(file)) == 2


def test_a_span_that_fails_is_written_and_the_next_ones_too(file: Path) -> None:
    with pytest.raises(ValueError, match="of the body"), trace.span("outer"), trace.span("inner"):
        raise ValueError("of the body")
    with trace.span("next"):
        pass
    assert [event["name"] for event in spans(file)] == ["inner", "outer", "next"]


def test_each_thread_writes_its_own(file: Path) -> None:
    """Another thread's spans do not wait for the end of this one's."""

    def draw() -> None:
        with trace.span("beside"):
            pass

    with trace.span("outer"):
        other = threading.Thread(target=draw)
        other.start()
        other.join()
        assert [event["name"] for event in spans(file)] == ["beside"]
    beside, outer = spans(file)
    assert beside["tid"] != outer["tid"]


def test_a_file_that_cannot_be_written_stops_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_path", file / "nowhere" / "trace.json")
    for _ in range(2):
        with trace.span("outer"):
            pass
    assert not file.exists()

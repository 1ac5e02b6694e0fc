"""The form of a report's file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from bench import report

RESULTS: dict[str, Any] = {
    "rows": [{"way": "a", "ms": 1.5}, {"way": "b", "ms": None}],
    "rows of other fields": [{"way": "a"}, {"ms": 2}],
    "rows of other orders": [{"way": "a", "ms": 1}, {"ms": 2, "way": "b"}],
    "numbers": [1, 2.5],
    "by name": {"one": [{"a": 1}], "two": 3},
    "rows in rows": [{"runs": [{"ms": 1}, {"ms": 2}], "way": "a"}, {"runs": [], "way": "b"}],
    "rows in lists": {"rounds": [[{"at": 1, "loras": [1]}, {"at": 2, "loras": []}], []]},
    "no rows": [],
}


@pytest.mark.parametrize("results", RESULTS.values(), ids=RESULTS.keys())
def test_results_are_read_as_they_were_written(results: Any, tmp_path: Path) -> None:
    file = report.write("name", {}, results, machine={}, out=tmp_path / "name.json")
    assert report.parsed(file.read_text())["results"] == results
    with report.elsewhere(tmp_path):
        assert report.read("name")["results"] == results


def test_rows_of_the_same_fields_name_them_once(tmp_path: Path) -> None:
    rows = RESULTS["rows"]
    file = report.write("name", {}, rows, machine={}, out=tmp_path / "name.json")
    found = json.loads(file.read_text())["results"]
    assert found == {"columns": ["way", "ms"], "rows": [["a", 1.5], ["b", None]]}
    assert len(file.read_text().splitlines()) == len(rows) + 9


def test_rows_within_rows_name_their_fields_once_too(tmp_path: Path) -> None:
    file = report.write("name", {}, RESULTS["rows in rows"], machine={}, out=tmp_path / "name.json")
    assert json.loads(file.read_text())["results"] == {
        "columns": ["runs", "way"],
        "rows": [[{"columns": ["ms"], "rows": [[1], [2]]}, "a"], [[], "b"]],
    }


def test_settings_are_the_options_without_where_it_writes_to() -> None:
    options = argparse.Namespace(steps=20, ratios=Path("a.npy"), out=Path("b"), figure=None)
    assert report.settings_of(options) == {"steps": 20, "ratios": "a.npy"}


def test_columns_that_do_not_fit_their_rows_are_told() -> None:
    text = json.dumps({"results": {"columns": ["a", "b"], "rows": [[1, 2], [3]]}})
    with pytest.raises(ValueError, match="shorter"):
        report.parsed(text)

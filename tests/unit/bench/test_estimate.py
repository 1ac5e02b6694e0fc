"""The error of estimates, from what was told and when jobs ended."""

from __future__ import annotations

import pytest

from bench.estimate import errors


def test_errors_are_shares_of_what_was_left() -> None:
    ends = {"a": 10.0, "b": 20.0}
    told = [("a", 0.0, 8.0), ("a", 5.0, 10.0), ("b", 10.0, 10.0), ("a", 9.9, 5.0)]
    found = errors(told, ends)
    assert found["answers"] == 3  # the last was asked when next to nothing was left
    assert found["samples"] == [[8.0, 10.0], [10.0, 5.0], [10.0, 10.0]]
    assert found["relative_error"][1] == pytest.approx(0.2)

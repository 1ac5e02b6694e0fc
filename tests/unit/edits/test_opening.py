"""The step chooser that the processes of one server share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.edits import opening
from tessera.edits.chooser import Line, StepChooser


def test_a_replaced_process_knows_what_the_first_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_BOARD", str(tmp_path / "board"))
    chooser = StepChooser(Line(0.0, 2.0), Line(3.0, 1.0))
    chooser.observe("sparse", (8, 8), 16, 50.0)
    measured: list[int] = []

    def measure_once() -> StepChooser:
        measured.append(1)
        return chooser

    costs = tmp_path / "board.costs"
    first = opening._remembered(costs, measure_once)
    second = opening._remembered(costs, measure_once)
    assert len(measured) == 1
    assert second == first == chooser
    assert second.cost("sparse", (8, 8), 16) == pytest.approx(50)

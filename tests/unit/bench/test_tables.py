"""Tables of README and docs are what their reports render; benchmarks can be run by name."""

from __future__ import annotations

import importlib
import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch

from bench import again, report
from bench.__main__ import BENCHES
from bench.calibration import product_ms
from bench.lora_tables import to_diffusers
from bench.server import ROOT
from bench.tables import PLACE, TABLES, rendered, texts
from tests.samples.waiting import PATIENCE_S

WITH_TABLES = [text for text in texts() if "<!-- table: " in text.read_text()]


@pytest.mark.parametrize("text", WITH_TABLES, ids=lambda text: text.name)
def test_tables_are_what_their_reports_render(text: Path) -> None:
    """`python -m bench tables` writes them."""
    content = text.read_text()
    assert rendered(content) == content


def test_every_table_is_somewhere() -> None:
    used = {found[2] for text in WITH_TABLES for found in PLACE.finditer(text.read_text())}
    assert used == set(TABLES)


def test_a_changed_figure_is_noticed() -> None:
    text = (ROOT / "README.md").read_text()
    wrong = re.sub(r"\| 0\.\d\d \(", "| 9.99 (", text, count=1)
    assert wrong != text
    assert rendered(wrong) == text


@pytest.mark.parametrize("bench", BENCHES.values(), ids=BENCHES.keys())
def test_every_benchmark_can_be_run(bench: object) -> None:
    module = importlib.import_module(f"bench.{bench.module}")  # type: ignore[attr-defined]
    assert callable(module.main)


def test_committed_reports_have_the_form() -> None:
    for name in {file.stem for file in report.FOLDER.glob("*.json")}:
        found = report.read(name)
        assert found["name"] == name
        assert found["machine"]["cpu"]
        again.started(found["command"])
        assert found["results"]


def test_a_report_has_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench trace", "--rate", "2 a"])
    file = report.write("trace", {"rate": 2}, [1], machine={"cpu": "one"})
    found = report.read("trace")
    assert found["command"] == "python -m bench trace --rate '2 a'"
    assert (found["settings"], found["results"]) == ({"rate": 2}, [1])
    file.write_text(json.dumps(found | {"more": 1}))
    with pytest.raises(ValueError, match=r"trace.json has \['name', .* accepted: \['name', "):
        report.read("trace")


def test_a_report_has_the_state_of_the_machine_before_and_after(tmp_path: Path) -> None:
    machine = report.describe_machine(2)
    assert machine["load_average_before"] >= 0
    began = datetime.fromisoformat(machine["began"]) - timedelta(seconds=90)
    machine["began"] = began.isoformat(timespec="seconds")
    with report.elsewhere(tmp_path):
        report.write("trace", {}, [1], machine=machine)
        found = report.read("trace")["machine"]
    assert 90 <= found["seconds"] < 90 + PATIENCE_S
    for when in ("before", "after"):
        one, two = (found["product_ms"][when][count] for count in ("1", "2"))
        assert one > 0
        assert two > 0


def test_the_calibration_leaves_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        product_ms()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_edits_have_the_quartiles_of_the_ratio_within_a_turn() -> None:
    samples = {"sparse": [10.0, 30.0, 20.0], "diffusers": [20.0, 100.0, 80.0]}
    assert to_diffusers({"samples_ms": samples}) == "0.30 (0.28-0.40)"
    rows = [row for row in TABLES["readme"]().splitlines() if "sparse edit" in row]
    for row in rows:
        tessera, diffusers, ratio = row.split(" | ")[1:4]
        for cell in (tessera, diffusers, ratio):
            assert re.fullmatch(r"[\d.]+ \([\d.]+-[\d.]+\)( m?s)?", cell), cell
    assert len(rows) == 7


def test_the_command_of_a_row_is_its_report_s(tmp_path: Path) -> None:
    for name in ("cpu", "edit_latency_demo", "edit_latency_demo_balanced", "edit_latency_sdxl"):
        found = json.loads(report.path_of(name).read_text())
        text = json.dumps(found | {"command": f"python -m bench {name} --rounds 3"})
        (tmp_path / f"{name}.json").write_text(text)
    with report.elsewhere(tmp_path):
        table = TABLES["readme"]()
    assert "`python -m bench cpu --rounds 3` |" in table
    assert "make bench" not in table


@pytest.mark.parametrize(
    ("more", "said"),
    [({}, "s (3 rounds"), ({"stop": [0.4, 0.8, 0.6]}, "s, and stops within 0.8 s (3 rounds")],
    ids=["start", "start and stop"],
)
def test_how_long_a_server_takes_to_start_and_to_stop(
    tmp_path: Path, more: dict[str, list[float]], said: str
) -> None:
    with report.elsewhere(tmp_path):
        results = {"start": [9.0, 8.0, 10.0]} | more
        report.write("restarts", {"runs": 3}, results, machine={"cpu": "one"})
        found = TABLES["ready"]()
    assert f"is ready after 9.0 (8.5-9.5) {said}" in found

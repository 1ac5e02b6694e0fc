"""Growth: slopes, and bundles with many ControlNets."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import pytest
from PIL import Image

from bench import growth_servers, report
from bench.growth import WAITING, draw, exponent, main
from bench.tables import TABLES


@pytest.mark.parametrize(
    ("seconds", "slope"),
    [
        ([5.0, 5.0, 5.0], 0),
        ([1.0, 2.0, 4.0], 1),
        ([1.0, 1.0, 4.0], 1),
        ([1.0, 4.0], 2),
        ([900.0, 1.0, 4.0, 16.0], 2),
    ],
    ids=["flat", "linear", "by all three points", "two points", "the last three"],
)
def test_exponent(seconds: list[float], slope: float) -> None:
    assert exponent([5, 10, 20, 40][-len(seconds) :], seconds) == pytest.approx(slope)


def test_the_figure_has_memory_below_the_times(tmp_path: Path) -> None:
    numbers = {"3": {"start": [1.0, 2.0]}, "30": {"start": [1.5]}}
    plain = {"loras": {"numbers": numbers}, "waiting": {"numbers": numbers}}
    draw(plain, tmp_path / "plain.png")
    more = {count: samples | {"memory, MB": [100.0]} for count, samples in numbers.items()}
    draw(plain | {"loras": {"numbers": more}}, tmp_path / "memory.png")
    with Image.open(tmp_path / "plain.png") as one, Image.open(tmp_path / "memory.png") as two:
        assert two.width == one.width > 100
        assert two.height == 2 * one.height


def test_each_kind_keeps_its_own_date_command_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"date": "2026-11-27", "command": "python -m bench growth --runs 1", "machine": {"a": 1}}
    numbers = {"1": {"open a job": [1.0]}, "2": {"open a job": [2.0]}}
    kept = {"templates": {**old, "numbers": numbers}}
    argv = ["bench growth", "--only", "waiting", "--figure", str(tmp_path / "figure.png")]
    monkeypatch.setattr(sys, "argv", argv)
    with report.elsewhere(tmp_path):
        report.write("growth", {}, kept, machine={"cpu": "old"})
        main()
        found = report.read("growth")["results"]
        table = TABLES["growth"]()
    assert found["templates"] == kept["templates"]
    assert list(found) == ["templates", "waiting"]
    now = found["waiting"]
    assert now["command"].startswith("python -m bench growth --only waiting")
    assert now["date"] == date.today().isoformat()
    assert now["machine"]["product_ms"].keys() == {"before", "after"}
    assert list(now["numbers"]) == [str(count) for count in WAITING]
    assert (
        "| **templates** | 2026-11-27, speed not recorded | `python -m bench growth --runs 1` |"
        in (table)
    )
    assert f"| **waiting** | {now['date']}, product " in table


def test_memory_is_in_megabytes_in_the_table(tmp_path: Path) -> None:
    numbers = {str(n): {"memory at the end, MB": [1000.0 + n]} for n in (10, 20)}
    of = {"date": "2026-11-29", "command": "c", "machine": {}, "numbers": numbers}
    with report.elsewhere(tmp_path):
        report.write("growth", {}, {"loras": of}, machine={"cpu": "one"})
        row = TABLES["growth"]().splitlines()[-1]
    assert row == "| | memory at the end, MB | 1,010 MB at 10, 1,020 MB at 20 | 0.0 |"


def test_all_controlnets_of_a_bundle_have_the_files_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = tmp_path / "demo"
    (demo / "graphs").mkdir(parents=True)
    names = ("unet_encoder", "controlnet_edges", "controlnet_edges_hint", "controlnet_other")
    graphs = {name: {"file": f"graphs/{name}.onnx"} for name in names}
    (demo / "bundle.json").write_text(json.dumps({"name": "demo", "graphs": graphs}))
    monkeypatch.setattr(growth_servers, "DEMO_BUNDLE", demo)
    bundle, made = growth_servers.many_controls(tmp_path / "many", 3)
    assert made == ["style-000", "style-001", "style-002"]
    assert (bundle / "graphs").resolve() == demo / "graphs"
    found = json.loads((bundle / "bundle.json").read_text())["graphs"]
    assert len(found) == 1 + 2 * 3
    assert found["controlnet_style-002_hint"] == graphs["controlnet_edges_hint"]

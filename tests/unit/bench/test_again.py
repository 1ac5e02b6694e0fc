"""A second run of a benchmark, compared with its report."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from bench import again, restarts
from bench import report as reports
from bench.sampled import FORMS, WITHOUT, quartiles_of
from bench.server import ROOT

MACHINE = {"cpu": "one", "threads": 2}


def report_of(samples: dict[str, list[float]], day: str = "2026-11-26", **more: Any) -> Any:
    """A report of edits with these samples at one ratio."""
    level = {"ratio": 0.02, "samples_ms": samples}
    return {
        "name": "edit_latency_demo",
        "date": day,
        "command": "python -m bench edits --rounds 2",
        "machine": MACHINE,
        "settings": {"steps": 20, "rounds": 2},
        "results": {"levels": [level]},
    } | more


COMMITTED = [name for name in FORMS if reports.path_of(name).exists()]
FIRST = report_of({"sparse": [40, 60, 50], "dense": [90, 80, 85], "diffusers": [100, 100, 100]})
SECOND = report_of(
    {"sparse": [110, 104, 90], "dense": [130, 200, 160], "diffusers": [200, 200, 200]}, "2026-11-29"
)


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_reports_have_figures_with_a_spread(name: str) -> None:
    figures = list(FORMS[name].figures(reports.read(name)))
    assert len({figure.name for figure in figures}) == len(figures)
    if not name.startswith(("lora_", "baselines")):  # those are of before they had samples
        assert figures
    for figure in figures:
        low, middle, high = figure.quartiles
        assert low <= middle <= high, figure
        assert figure.turns is None or figure.turns > 1, figure


def test_every_report_can_be_compared_or_says_why_not() -> None:
    names = {file.stem for file in reports.FOLDER.glob("*.json")}
    assert names <= FORMS.keys() | WITHOUT.keys()
    assert not FORMS.keys() & WITHOUT.keys()


@pytest.mark.parametrize("name", COMMITTED)
def test_the_command_of_a_report_can_be_run_again(name: str) -> None:
    module, _, _ = again.started(reports.read(name)["command"])
    assert (ROOT / "bench" / f"{module}.py").exists()


def test_commands_of_both_forms() -> None:
    own = again.started("python -m bench edits-sdxl sdxl --rounds 2")
    assert own == ("edit_latency", "bench edits-sdxl", ["sdxl", "--rounds", "2"])
    assert again.started("python -m bench.run") == ("run", "run.py", [])
    with pytest.raises(ValueError, match=r"make bench.*accepted: python -m bench NAME"):
        again.started("make bench")


def test_ratios_are_of_turns() -> None:
    found = again.compared("edit_latency_demo", FIRST, SECOND)
    before, second = found["figures"]["mask 0.02, sparse / diffusers"]
    assert before == {"quartiles": [0.45, 0.5, 0.55], "turns": 3, "sides": [50, 100]}
    assert second == {"quartiles": [0.485, 0.52, 0.535], "turns": 3, "sides": [104, 200]}
    assert found["second"] == {key: SECOND[key] for key in ("date", "command", "machine")}


def test_samples_of_loras_are_of_turns() -> None:
    samples = {"pair": [10.0, 20.0], "refit": [40.0, 80.0], "side": [12.0, 24.0]}
    level = {"layers": "linear", "rank": 4, "sets": 2, "samples_ms": samples}
    content = {"settings": {"steps": 20}, "results": {"levels": [level]}}
    (figure,) = FORMS["lora_crossover"].figures(content)
    assert figure.name == "linear, rank 4, 2 sets, side / turns"
    assert figure.quartiles == pytest.approx((0.5, 0.5, 0.5))  # 12 / (2 * (10 + 40 / 20))
    assert figure.turns == 2
    results = {"samples_ms": {"tessera, cold": [1.0, 2.0, 3.0]}}
    (figure,) = FORMS["lora_switch_sd15"].figures({"results": results})
    assert (figure.name, figure.quartiles) == ("tessera, cold, ms", (1.5, 2.0, 2.5))


def test_baselines_are_compared_with_tessera_in_the_same_round() -> None:
    p95 = {"Tessera": [1.0, 2.0], "one at a time": [2.0, 6.0], "static": [3.0, None]}
    runs = [
        {"side": side, "load": "own", "share": 0.8, "summary": {"p95_of_rounds": seconds}}
        for side, seconds in p95.items()
    ]
    (figure,) = FORMS["baselines"].figures({"results": {"runs": runs}})
    assert figure.name == "one at a time, 0.8 of its capacity, p95 / Tessera's"
    assert (figure.quartiles, figure.sides) == ((2.25, 2.5, 2.75), (4000, 1500))


def test_policies_of_a_fleet_are_compared_with_locality_in_the_same_round() -> None:
    p95 = {"round robin": (300, 400), "locality": (200, 100)}
    runs = [
        {"policy": policy, "round": number, "p95_ms": of[number]}
        for number in (1, 0)  # the order of the runs does not matter
        for policy, of in p95.items()
    ]
    (figure,) = FORMS["fleet_locality"].figures({"results": runs})
    assert figure.name == "p95, round robin / locality"
    assert (figure.quartiles, figure.turns) == ((2.125, 2.75, 3.375), 2)


def test_a_simulated_fleet_has_its_ratios_of_all_rounds() -> None:
    rounds = [
        {"workload": name, "p50": {"ratio": ratio}, "p95": {"ratio": 2 * ratio}}
        for ratio in (1.1, 0.9, 1.0)
        for name in ("plain", "edits")
    ]
    figures = list(FORMS["fleet_validate"].figures({"results": {"rounds": rounds}}))
    assert [figure.name for figure in figures] == [
        f"{name}, {share}, simulated / real"
        for name in ("plain", "edits")
        for share in ("p50", "p95")
    ]
    assert figures[1].quartiles == pytest.approx((1.9, 2.0, 2.1))


def test_other_settings_are_no_second_run() -> None:
    other = report_of({}, settings={"steps": 10, "rounds": 2})
    with pytest.raises(ValueError, match=r"settings of edit_latency_demo .*'steps': \[20, 10\]"):
        again.compared("edit_latency_demo", FIRST, other)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ((1, 2, 3), (1.5, 2.5, 3.5), "both ways"),
        ((1, 2, 3), (2.2, 2.5, 3.5), "second in first"),
        ((2.2, 2.5, 3.5), (1, 2.1, 3), "first in second"),
        ((1, 2, 3), (4, 5, 6), "no"),
    ],
)
def test_within(old: tuple[float, ...], new: tuple[float, ...], said: str) -> None:
    assert again.within(old, new) == said


def test_a_row_has_the_state_of_the_machine_and_how_far_figures_are_apart() -> None:
    product = {"before": {"1": 40.2, "2": 21.0}, "after": {"1": 41.0, "2": 38.8}}
    second = SECOND | {"machine": MACHINE | {"product_ms": product}}
    found = again.compared("edit_latency_demo", FIRST, second)
    assert again.row_of(again.kept(found)) == [
        "`python -m bench edits --rounds 2`",
        "2026-11-26, speed not recorded",
        "2026-11-29, product 40 and 21, then 41 and 39 ms",
        "2 of 2",
        "0.94 to 1.04",
    ]
    rows = again.rows_of(found)
    assert rows[0] == [
        "mask 0.02, sparse / diffusers",
        "0.50 (0.45 to 0.55, 3 turns): 50 / 100 ms",
        "0.52 (0.48 to 0.54, 3 turns): 104 / 200 ms",
        "1.04",
        "both ways",
    ]
    assert rows[1][2].startswith("0.80 (0.72 to 0.90, 3 turns)")
    assert rows[1][-1] == "first in second"


def test_what_is_no_factor_has_no_span() -> None:
    found = again.kept(again.compared("edit_latency_demo", FIRST, SECOND))
    negative = [[-1, -0.5, 0], [-1, 0.5, 1]]
    assert again.row_of(found | {"figures": {"gateway - SDK, ms": negative}})[-2:] == ["1 of 1", ""]


def test_a_comparison_is_kept_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "edit_latency_demo.json").write_text(json.dumps(FIRST))
    (tmp_path / "second.json").write_text(json.dumps(SECOND))
    command = ["bench again", "edit_latency_demo", "--with", str(tmp_path / "second.json")]
    monkeypatch.setattr(sys, "argv", command)
    with reports.elsewhere(tmp_path):
        other = again.kept(again.compared("edit_latency_demo", FIRST, SECOND))
        reports.write(again.NAME, {}, {"other": other}, machine=MACHINE)
        again.main()
        found = reports.read(again.NAME)
        assert again.table().count("`python -m bench edits --rounds 2`") == 2
    assert list(found["results"]) == ["other", "edit_latency_demo"]
    assert found["results"]["edit_latency_demo"] == found["results"]["other"]
    assert found["command"].startswith("python -m bench again edit_latency_demo --with ")


def test_a_run_has_the_report_s_options_and_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[list[str]] = []

    def main() -> None:
        lines.append([*sys.argv])
        reports.write("restarts", {"runs": 3}, {"start": [1.0]}, machine=MACHINE)

    monkeypatch.setattr(sys, "argv", ["bench again", "restarts"])
    monkeypatch.setattr(again, "FOLDER", tmp_path)
    monkeypatch.setattr(restarts, "main", main)
    before = reports.path_of("restarts").read_bytes()
    first = {"command": "python -m bench restarts", "settings": {"runs": 3}}
    file = again.run("restarts", first)
    assert lines == [["bench restarts", "--runs", "3"]]
    assert file == tmp_path / "restarts.json"
    assert json.loads(file.read_text())["results"] == {"start": [1.0]}
    assert reports.path_of("restarts").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("overload", "samples are the requests of a run"),
        ("nothing", "no such"),
    ],
)
def test_what_cannot_be_compared_says_why(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench again", name])
    with pytest.raises(SystemExit):
        again.main()
    assert said in capsys.readouterr().err


def test_a_report_without_samples_is_to_be_run_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = FIRST | {"results": {"tessera": {"cold": 5.0}}}
    (tmp_path / "lora_switch_sd15.json").write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["bench again", "lora_switch_sd15"])
    with reports.elsewhere(tmp_path), pytest.raises(SystemExit):
        again.main()
    assert "of 2026-11-26 has medians without samples; run it anew" in capsys.readouterr().err


def test_the_same_day_is_no_second_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    today = date.today().isoformat()
    (tmp_path / "edit_latency_demo.json").write_text(json.dumps(FIRST | {"date": today}))
    monkeypatch.setattr(sys, "argv", ["bench again", "edit_latency_demo"])
    with reports.elsewhere(tmp_path), pytest.raises(SystemExit):
        again.main()
    assert "measured today" in capsys.readouterr().err


def test_quartiles() -> None:
    assert quartiles_of([7.0]) == (7.0, 7.0, 7.0)
    assert quartiles_of([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)

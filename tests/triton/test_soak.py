"""Two minutes of mixed traffic with kills, stops and damage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.server import ROOT
from bench.soak.traffic import FAULTY, PICTURES


@pytest.mark.timeout(1200)  # two minutes of traffic, and what is under way when they are over
def test_every_picture_is_right_and_nothing_is_left(bundle: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "bench.soak", "--minutes=2", "--clients=2", f"--out={tmp_path}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert (found["faulty"], found["left_behind"]) == ([], [])
    assert found["faults"]
    outcomes = found["outcomes"]
    assert sum(outcomes[kind].get("right", 0) for kind in PICTURES if kind in outcomes)
    assert not {outcome for counts in outcomes.values() for outcome in counts} & set(FAULTY)
    assert (tmp_path / "soak.png").stat().st_size > 0

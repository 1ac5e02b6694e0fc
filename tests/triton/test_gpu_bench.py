"""`bench/gpu.sh --tiny`: the benchmark for a GPU runs through on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu.sh"


def test_the_benchmark_runs_through_and_ends_with_its_table(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "COLUMNS": "120"}
    line = [str(SCRIPT), str(tmp_path), "--tiny"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=540)
    assert done.returncode == 0, done.stderr
    rows = [row.split("│") for row in done.stdout.splitlines() if row.startswith("│")]
    assert [(row[1].strip(), row[2].strip(), row[3].strip()) for row in rows] == [
        ("sd15", "64x64", "2"),
        ("sdxl", "64x64", "2"),
    ]
    for row in rows:
        assert all(float(cell) > 0 for cell in row[4:9])
    assert done.stdout.rstrip().endswith("┘")


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    done = subprocess.run([str(SCRIPT), str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: bench/gpu.sh WHEELS_DIR" in done.stderr

"""`bench/gpu/first.sh` and `second.sh` with `--tiny`, in an environment that holds what a borrowed
machine has and what is carried there, linked from this one; on a machine without a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.environment import HERE, ROOT

SLEEPER = "--step=sleeper:1:sleep 600"


def script(
    name: str, out: Path, *arguments: str, seconds: int
) -> tuple[str, dict[str, dict[str, Any]]]:
    """What a script prints, and the outcomes of its steps by name."""
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(out)}
    line = [str(HERE / f"{name}.sh"), "--tiny", SLEEPER, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=seconds)
    assert done.returncode == 1, "a step that hangs is a failure\n" + done.stderr
    found = json.loads((out / f"{name}.json").read_text())
    return done.stdout, {outcome["name"]: outcome for outcome in found}


@pytest.mark.parametrize(
    ("name", "steps", "seconds"),
    [("first", ("machine", "tests", "vae"), 420), ("second", ("serve-sd15",), 360)],
    ids=["first", "second"],
)
def test_a_script_runs_through(
    tmp_path: Path, name: str, steps: tuple[str, ...], seconds: int
) -> None:
    """Within what it may take on a borrowed machine."""
    printed, outcomes = script(name, tmp_path, f"--only={','.join(steps)}", seconds=seconds)
    assert outcomes.pop("sleeper")["state"] == "timed out"
    assert {n: o["state"] for n, o in outcomes.items()} == dict.fromkeys(steps, "ok"), printed
    assert all(outcome["result"]["rows"] for outcome in outcomes.values())
    assert all(o["seconds"] <= o["limit_s"] + 15 for o in outcomes.values())
    table = printed[printed.index("\nSteps\n") :].split("\n")
    assert [line.split()[0] for line in table[4:-1]] == ["sleeper", *steps]


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    line = [str(HERE / "first.sh"), str(tmp_path / "none")]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 2
    assert "is no folder; bench/gpu/pack.sh makes it" in done.stderr

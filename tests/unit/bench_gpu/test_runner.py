"""Steps with time limits: what ends them, what is kept of them, and the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu import first, second
from bench.gpu.environment import ROOT
from bench.gpu.runner import Outcome, Step, module_step, report, run_steps
from bench.gpu.tables import render

ROWS = 'import json, sys; json.dump({"rows": [{"ms": 1.5}]}, open(sys.argv[1], "w"))'
SLEEPS_S = 300
SLEEPS = f"; sys.stdout.write('began'); sys.stdout.flush(); import time; time.sleep({SLEEPS_S})"


def python(name: str, code: str, limit_s: float = 100.0) -> Step:
    return Step(name, limit_s, (sys.executable, "-S", "-c", code, "{out}"), name.title())


def run(tmp_path: Path, *steps: Step, seconds: float = 500.0) -> list[Outcome]:
    deadline = time.monotonic() + seconds
    return run_steps(steps, deadline=deadline, out=tmp_path, name="first", grace_s=0.3)


def test_a_failing_and_a_hanging_step_stop_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    outcomes = run(
        tmp_path,
        python("hanging", ROWS + SLEEPS, limit_s=4),
        python("failing", "print('first'); raise ValueError('no such thing')"),
        Step("absent", 5, ("/no/such/program",)),
        python("good", ROWS),
    )
    assert time.monotonic() - began < SLEEPS_S
    assert [o.state for o in outcomes] == ["timed out", "failed", "failed", "ok"]
    assert outcomes[0].error == "killed after 4 s; began"
    assert outcomes[1].error == "ValueError: no such thing"
    assert "No such file" in outcomes[2].error
    assert outcomes[0].result == outcomes[3].result == {"rows": [{"ms": 1.5}]}
    kept = json.loads((tmp_path / "first.json").read_text())
    assert [o["name"] for o in kept] == ["hanging", "failing", "absent", "good"]
    assert "no such thing" in (tmp_path / "first.log").read_text()


def test_a_step_that_heeds_no_signal_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SLEEPS
    began = time.monotonic()
    assert run(tmp_path, python("deaf", deaf, limit_s=0.7))[0].state == "timed out"
    assert time.monotonic() - began < SLEEPS_S


def test_steps_for_which_no_time_is_left_are_skipped(tmp_path: Path) -> None:
    outcomes = run(tmp_path, python("late", ROWS), seconds=2.0)
    assert [(o.state, o.seconds) for o in outcomes] == [("no time", 0.0)]


def test_a_step_gets_no_more_time_than_is_left(tmp_path: Path) -> None:
    began = time.monotonic()
    outcomes = run(tmp_path, python("long", "import sys" + SLEEPS, limit_s=50), seconds=6.0)
    assert outcomes[0].state == "timed out"
    assert time.monotonic() - began < 50, "its own limit"


def test_nothing_that_a_step_started_is_left(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    orphan = (
        "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True);"
        f"open({str(mark)!r}, 'w').write(str(p.pid))"
    )
    file = tmp_path / "orphan.py"
    file.write_text(orphan)
    line = [sys.executable, "-m", "bench.gpu.first", "--only=none"]
    line += [f"--step=orphan:20:{sys.executable} {file}"]
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_the_report_ends_with_the_steps() -> None:
    rows = {"rows": [{"side": "a", "ms": 1.234}, {"side": "bb", "ms": 123.4, "note": "x"}]}
    good = Outcome("dense", "ok", 3.21, 60, title="Dense step", result=rows)
    bad = Outcome("vae", "failed", 1.0, 30, error="out of memory")
    lines = report([good, bad]).splitlines()
    assert lines[:5] == [
        "Dense step",
        "side    ms  note",
        "----  ----  ----",
        "a     1.23",
        "bb     123  x",
    ]
    assert lines[-2].split() == ["dense", "ok", "3.2", "60"]
    assert lines[-1].split() == ["vae", "failed", "1", "30", "out", "of", "memory"]


def test_an_empty_table() -> None:
    assert render("Nothing", []) == "Nothing\n\n"


@pytest.mark.parametrize("script", [first, second], ids=["first", "second"])
def test_the_steps_of_a_script(script: object) -> None:
    steps, seconds = script.STEPS, script.SECONDS  # type: ignore[attr-defined]
    assert seconds <= {"bench.gpu.first": 405, "bench.gpu.second": 350}[script.__name__]  # type: ignore[attr-defined]
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        assert step.limit_s < seconds
        assert (ROOT / (step.command[2].replace(".", "/") + ".py")).exists()
        assert "{out}" in step.command


def test_a_module_step() -> None:
    step = module_step("vae", 30, "vae", "--variant=sd15", title="VAE")
    assert step.command[1:] == ("-m", "bench.gpu.vae", "--out", "{out}", "--variant=sd15")

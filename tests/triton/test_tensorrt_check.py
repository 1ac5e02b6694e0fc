"""The TensorRT check with ONNX Runtime in TensorRT's place: a bundle that is there is kept and
served, and the report is one file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.server import ROOT
from bench.tensorrt.run import REPORT
from tests.samples.bundles import Small

STEPS = ("versions", "bundle-sd15", "serve-sd15")


@pytest.mark.timeout(1800)  # two servers start
def test_a_bundle_is_served_and_reported(small: Callable[[str], Small], tmp_path: Path) -> None:
    shutil.copytree(small("sd15").bundle, tmp_path / "work" / "sd15")
    built = (tmp_path / "work" / "sd15" / "bundle.json").read_bytes()
    variables = {
        "OUT": str(tmp_path / "out"),
        "VERIFY_WORK": str(tmp_path / "work"),
        "VERIFY_ENGINE": "onnxruntime",
        "VERIFY_COMPILER": "tests.fakes.compiler:FakeCompiler",
    }
    line = [sys.executable, "-m", "bench.tensorrt.run", "--tiny", f"--only={','.join(STEPS)}"]
    done = subprocess.run(
        line, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = tmp_path / "out" / REPORT
    assert f"the report to send back: {report}" in done.stdout
    got = tmp_path / "got"
    with tarfile.open(report) as tar:
        tar.extractall(got, filter="data")
    found = {step["name"]: step for step in json.loads((got / "verify.json").read_text())}
    assert {name: step["state"] for name, step in found.items()} == dict.fromkeys(STEPS, "ok")
    pictures = {picture.name for picture in (got / "pictures").iterdir()}
    assert pictures == {"sd15-torch.png", "sd15-onnxruntime.png"}
    rows = found["serve-sd15"]["result"]["rows"]
    served = {(row.get("engine"), row["what"]) for row in rows}
    for kind in ("onnxruntime", "torch"):
        assert {(kind, what) for what in ("start", "picture", "dense edit of 0.2")} <= served
    (compared,) = [row for row in rows if row["what"] == "against onnxruntime"]
    assert compared["note"].startswith("4 steps: mean 0.")
    assert (tmp_path / "work" / "sd15" / "bundle.json").read_bytes() == built

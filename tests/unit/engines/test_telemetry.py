"""Nothing that Tessera runs reports to somebody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

_SPARED = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY")
"""Variables by which ONNX Runtime itself would do without."""

_OPEN = """
import sys
from pathlib import Path
from tessera.engines.onnxruntime import OnnxRuntimeEngine
OnnxRuntimeEngine(Path(sys.argv[1]), threads=1)
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    made = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(made, opset_imports=opset, ir_version=9), tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


@pytest.mark.parametrize("said", [None, "0"])
def test_onnx_runtime_keeps_no_session_of_its_telemetry(graph: Path, said: str | None) -> None:
    """Such a session is a file in the folder for temporary files, unless an operator wants it."""
    folders = {name: graph.parent / name for name in ("TMPDIR", "HOME")}
    for folder in folders.values():
        folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in _SPARED}
    wanted = {"ORT_DISABLE_TELEMETRY": said} if said else {}
    environment = kept | {name: str(folder) for name, folder in folders.items()} | wanted
    subprocess.run([sys.executable, "-c", _OPEN, str(graph)], env=environment, check=True)
    found = [path for folder in folders.values() for path in folder.rglob("*") if path.is_file()]
    assert bool(found) == (said == "0"), found

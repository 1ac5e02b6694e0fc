"""Base weights that LoRAs are merged into are those of the bundle that is served."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tessera.adapters.merge import Patchable
from tessera.adapters.patchable import patchables_of
from tessera.adapters.targets import Targets
from tessera.engines.base import EngineInfo
from tessera.errors import BundleError
from tessera.manifest import FileEntry, Graph, file_digest
from tessera.shared.checked import CheckedFiles
from tests.fakes.bundle import FakeBundle
from tests.fakes.engine import FakeEngine
from tests.samples.requests import MANIFEST

NAMES = ("first.weight", "second.weight")
GRAPH = "unet_encoder"


class Refittable(FakeEngine):
    def describe(self) -> EngineInfo:
        return EngineInfo("fake", "cpu", {}, {}, frozenset(NAMES))


def write(folder: Path, value: float) -> None:
    """A graph whose weights are outside of the .onnx file, each in a file."""
    weights = [numpy_helper.from_array(np.full((4, 4), value, np.float32), n) for n in NAMES]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (4, 4)) for n in "xy"]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights))
    onnx.save_model(
        model,
        folder / f"{GRAPH}.new",
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    for name in NAMES:
        (folder / name).rename(folder / f"{GRAPH}.onnx.{name}")
    model = onnx.load(str(folder / f"{GRAPH}.new"), load_external_data=False)
    for initializer in model.graph.initializer:
        initializer.external_data[0].value = f"{GRAPH}.onnx.{initializer.name}"
    (folder / f"{GRAPH}.new").write_bytes(model.SerializeToString())
    (folder / f"{GRAPH}.new").rename(folder / f"{GRAPH}.onnx")


def served(folder: Path) -> Patchable:
    files = {
        path.name: FileEntry(path.stat().st_size, file_digest(path))
        for path in folder.glob(f"{GRAPH}.onnx*")
    }
    graph = Graph(f"{GRAPH}.onnx", "config.json")
    bundle: Any = FakeBundle()
    bundle.folder = folder
    bundle.manifest = dataclasses.replace(MANIFEST, graphs={GRAPH: graph}, files=files)
    bundle.file = CheckedFiles(folder, bundle.manifest).check
    targets = Targets({"unet": dict.fromkeys(NAMES, (4, 4))}, "a small network")
    (made,) = patchables_of(bundle, targets, {GRAPH: Refittable(lambda inputs: {})})
    return made


def test_weights_of_another_build_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 1.0)
    opened, late = served(tmp_path), served(tmp_path)
    assert torch.equal(opened.base(NAMES[0]), torch.ones(4, 4))
    write(tmp_path, 2.0)
    assert torch.equal(opened.base(NAMES[1]), torch.ones(4, 4))
    with pytest.raises(BundleError, match="is not the file of the manifest"):
        late.base(NAMES[1])

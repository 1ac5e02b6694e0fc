"""A compiler in TensorRT's place: what it compiles are ONNX files that ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper

from tessera.engines.base import EngineInfo
from tessera.engines.compiled import CompiledKey
from tessera.engines.registry import Source
from tessera.networks.weights import Layout, to_layout

MACHINE = {"architecture": "sm_90", "tensorrt": "11.4.0"}


class OnnxEngine:
    """Runs a "compiled engine" that is an ONNX file; its weights can be replaced."""

    def __init__(self, engine_file: Path, layout: Layout) -> None:
        self._model = onnx.load(str(engine_file))
        self._layout = layout

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        session = ort.InferenceSession(
            self._model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        names = [o.name for o in session.get_outputs()]
        outputs = session.run(names, {k: v.numpy() for k, v in inputs.items()})
        return {n: torch.from_numpy(o) for n, o in zip(names, outputs, strict=True)}

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        held = {i.name: i for i in self._model.graph.initializer}
        for name, weight in weights.items():
            array = to_layout(name, weight, self._layout).numpy()
            held[name].CopyFrom(numpy_helper.from_array(array, name))

    def describe(self) -> EngineInfo:
        return EngineInfo("fake", "cpu", {}, {})


class FakeCompiler:
    """Plans are the exported graphs themselves; `spoil` changes one weight of them."""

    architecture, version = MACHINE["architecture"], MACHINE["tensorrt"]

    def __init__(self, spoil: bool = False, deaf: bool = False) -> None:
        self._spoil = spoil
        self._deaf = deaf

    def build(self, graph: Path, key: CompiledKey, timing_cache: Path) -> bytes:
        model = onnx.load(str(graph))
        if self._spoil:
            last = next(i for i in reversed(model.graph.initializer) if len(i.dims) > 1)
            last.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(last), last.name))
        return bytes(model.SerializeToString())

    def open(self, engine_file: Path, key: CompiledKey, source: Source) -> Any:
        engine = OnnxEngine(engine_file, source.layout)
        if self._deaf:
            engine.refit = lambda weights: None  # type: ignore[method-assign]
        return engine

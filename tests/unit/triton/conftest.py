"""The Triton models around fake engines, with the small fake of Triton's backend module."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tessera.manifest import Graph
from tessera.shared.board import Board
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.bundle import FakeBundle, FakeRecorder, FakeTokenizer
from tests.fakes.calls import call, call_as_sent, config_of_denoise, load, run_to_end
from tests.samples.bundles import Small
from tests.samples.requests import MANIFEST


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """encode, render, denoise, decode, jobs as Triton would load them; BLS reaches denoise."""
    prepare(monkeypatch, tmp_path, tmp_path / "bundle")
    from transformers import AutoTokenizer

    from tessera.engines.bundle import Bundle

    bundle = FakeBundle()
    monkeypatch.setattr(Bundle, "of", classmethod(lambda cls, settings: bundle))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda path: FakeTokenizer())
    loaded = opened(monkeypatch, tmp_path)
    loaded["edit"]._manifest = MANIFEST
    yield loaded | {"bundle": bundle}
    unload()


@pytest.fixture
def xl_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Callable[[str], Small]
) -> Iterator[dict[str, Any]]:
    """The same of a real bundle: SDXL's topology in small."""
    prepare(monkeypatch, tmp_path, small("sdxl").bundle)
    yield opened(monkeypatch, tmp_path)
    unload()


def prepare(monkeypatch: pytest.MonkeyPatch, root: Path, bundle: Path) -> None:
    """What models find when they are imported."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    monkeypatch.setenv("TESSERA_BUNDLE", str(bundle))
    monkeypatch.setenv("TESSERA_BOARD", str(root / "board"))
    monkeypatch.setenv("TESSERA_SLOTS", "0")
    monkeypatch.setenv("TESSERA_TEMPLATES", str(root / "templates"))
    for name in [n for n in list(sys.modules) if n.startswith("tessera.triton")]:
        monkeypatch.delitem(sys.modules, name)


def opened(monkeypatch: pytest.MonkeyPatch, root: Path) -> dict[str, Any]:
    """The models, which call each other."""
    pb_utils.METRICS.clear()
    loaded: dict[str, Any] = {"board": Board(root / "board")}
    for name in ("edit", "encode", "render", "denoise", "decode", "jobs", "templates"):
        loaded[name] = load(name).TritonPythonModel()
        loaded[name].initialize({"model_config": json.dumps(config_of_denoise(4))})
    monkeypatch.setattr(load("denoise"), "BURST_S", 0.0)
    monkeypatch.setitem(pb_utils.BLS, "denoise", lambda arrays: run_to_end(loaded, arrays))
    for name in ("encode", "render", "decode"):
        monkeypatch.setitem(pb_utils.BLS, name, partial(call_as_sent, name, loaded[name]))

    def templates(arrays: dict[str, Any]) -> pb_utils.InferenceResponse:
        return call(loaded["templates"], arrays, pb_utils.PARAMETERS["templates"])

    monkeypatch.setitem(pb_utils.BLS, "templates", templates)
    return loaded


def unload() -> None:
    """Forget the models' modules, which are bound to the fake of Triton's backend module."""
    for name in [n for n in list(sys.modules) if n.startswith("tessera.triton")]:
        del sys.modules[name]


@pytest.fixture
def sparse_models(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, Any]:
    """Models of a bundle that has the graphs of sparse edits; `recorder` makes recordings."""
    graph = Graph("a.onnx", "config.json")
    manifest = dataclasses.replace(MANIFEST, graphs={"unet_sparse": graph, "unet_text": graph})
    for name in ("encode", "templates"):
        monkeypatch.setattr(models[name], "_manifest", manifest)
    recorder = FakeRecorder(models["templates"]._store)
    monkeypatch.setattr(models["templates"], "_recorder", recorder)
    return models | {"recorder": recorder, "digest": manifest.digest}


@pytest.fixture
def zero_models(sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`sparse_models` of a bundle like SDXL's: a negative prompt that is left out is zeros."""
    for name in ("encode", "templates"):
        manifest = dataclasses.replace(sparse_models[name]._manifest, zero_negative=True)
        monkeypatch.setattr(sparse_models[name], "_manifest", manifest)
    return sparse_models | {"digest": manifest.digest}

"""The exported sparse graphs in the engines against diffusers' UNet on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from tessera.engines.base import Engine
from tessera.engines.onnxruntime import OnnxRuntimeEngine
from tessera.engines.registry import Source, open_engine
from tessera.engines.torch import TorchEngine
from tessera.manifest import Latents, read_manifest
from tessera.networks.modules import GraphModule
from tessera.networks.sparse_unet import SparseUNet, TextProjections
from tessera.sparse.batch import ArrayCache
from tessera.sparse.engines import SparseUNetEngines
from tessera.variants import VARIANTS
from tessera_build.examples import example_inputs, run
from tessera_build.export import Layout, export_graph
from tessera_build.graphs import signature_of
from tests.fakes.sparse import (
    MASKS,
    batch_of,
    dense_pass,
    largest_difference,
    mask_of,
    small_unet,
)
from tests.samples.bundles import IN_HALF, Small

Engines = Callable[[str], SparseUNetEngines]
SIZES = ((16, 16), (9, 13))


@pytest.fixture(scope="session")
def engines(small: Callable[[str], Small], tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """Opens the sparse graphs of a topology in ONNX Runtime."""

    def opened(name: str) -> SparseUNetEngines:
        if name != "demo":
            return SparseUNetEngines(*(in_bundle(small(name), g, "onnxruntime") for g in GRAPHS))
        folder = tmp_path_factory.mktemp(name)
        engines = (OnnxRuntimeEngine(exported(name, g, folder).path) for g in GRAPHS)
        return SparseUNetEngines(*engines)

    return opened


GRAPHS = ("unet_sparse", "unet_text")


@pytest.mark.parametrize("name", [*VARIANTS, *IN_HALF, "demo"])
def test_sparse_is_dense_in_onnx_runtime(engines: Engines, name: str) -> None:
    check(engines(name), name, tolerance=1e-4)


@pytest.mark.parametrize("name", ["sdxl", *IN_HALF])
def test_sparse_is_dense_in_the_torch_engine(small: Callable[[str], Small], name: str) -> None:
    opened = SparseUNetEngines(*(in_bundle(small(name), g, "torch") for g in GRAPHS))
    check(opened, name, tolerance=1e-4)


def test_half_precision_keeps_indices_and_statistics() -> None:
    """bfloat16 stands for the half precision of a GPU; float32 inputs are cast by the engine."""
    unet = copy.deepcopy(small_unet("demo"))
    graphs = (SparseUNet(unet).eval(), TextProjections(unet).eval())
    opened = SparseUNetEngines(*(TorchEngine(g, dtype=torch.bfloat16) for g in graphs))
    check(opened, "demo", tolerance=0.1)


@torch.no_grad()
def test_weights_of_the_sparse_graph_can_be_replaced_and_restored(tmp_path: Path) -> None:
    """Linear layers and convolutions of both sizes; the first refit opens the session again."""
    made = exported("demo", "unet_sparse", tmp_path)
    engine = OnnxRuntimeEngine(made.path, layout=made.layout, refittable=True, packed=True)
    inputs = example_inputs(made.module, Latents(4, 8, 1.0), rows=2, height=12, width=10)
    before = engine.run(inputs)["prediction"]
    parameters = dict(made.module.named_parameters())
    targets = {
        f"{name}.weight"
        for name, module in made.module.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert targets == engine.describe().refittable & targets
    base = {name: parameters[name].clone() for name in targets}
    changed = {name: weight + 0.02 * torch.randn_like(weight) for name, weight in base.items()}
    engine.refit(changed)
    try:
        for name in targets:
            parameters[name].copy_(changed[name])
        wanted = run(made.module, inputs)["prediction"]
    finally:
        for name in targets:
            parameters[name].copy_(base[name])
    found = engine.run(inputs)["prediction"]
    assert (found - wanted).abs().max() <= 1e-4
    assert (found - before).abs().max() > 1e-2
    engine.refit(base)
    assert torch.equal(engine.run(inputs)["prediction"], before)


def check(opened: SparseUNetEngines, name: str, *, tolerance: float) -> None:
    """All kinds of masks in one call, then each of two alone; two sizes."""
    for height, width in SIZES:
        masks = [mask_of(kind, height, width) for kind in MASKS]
        unet = small_unet(name)
        inputs, recording, answer = dense_pass(unet, rows=len(masks), height=height, width=width)
        for chosen in (range(len(masks)), [0], [3]):
            rows = list(chosen)
            batch = batch_of(unet, [masks[i] for i in rows])
            conditions = {k: v[rows] for k, v in inputs.items()}
            sample, timestep = conditions.pop("sample"), conditions.pop("timestep")
            prediction = opened.predict(
                batch,
                sample,
                timestep,
                opened.project_text(conditions),
                batch.cached([ArrayCache(recording, i) for i in rows]),
            )
            found = largest_difference(batch, prediction, answer[rows], [masks[i] for i in rows])
            assert found <= tolerance * max(1.0, float(answer.abs().max()))


def in_bundle(made: Small, graph: str, kind: str) -> Engine:
    return open_engine(kind, Source.of(made.bundle, read_manifest(made.bundle), graph))


@dataclass(frozen=True)
class Exported:
    """A graph, the module it was made of, and the layout of its weights."""

    path: Path
    module: GraphModule
    layout: Layout


def exported(name: str, graph: str, folder: Path) -> Exported:
    unet = small_unet(name)
    kinds: dict[str, type[GraphModule]] = {"unet_sparse": SparseUNet, "unet_text": TextProjections}
    module = kinds[graph](unet).eval()
    inputs = example_inputs(module, Latents(4, 8, 1.0), rows=2, height=32, width=16)
    path = folder / f"{graph}.onnx"
    return Exported(path, module, export_graph(module, signature_of(module, inputs), path))

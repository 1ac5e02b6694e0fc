"""The torch and TensorRT engines on a GPU against torch on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tessera.engines.base import Engine
from tessera.engines.canary import WatchedEngine, difference
from tessera.engines.registry import Source, chosen_kind, open_engine, open_module
from tessera.engines.torch import TorchEngine
from tessera.manifest import read_manifest
from tessera.networks.modules import GraphModule
from tessera.types import Tensors
from tessera.variants import VARIANTS
from tessera_build.compile import compile_job, plan_jobs
from tessera_build.examples import decoder_inputs, example_inputs, run
from tests.samples.bundles import Small

Make = Callable[[str], Small]
UNET = ("unet_encoder", "unet_encoder_lowrank")
HALVES = ("encoder", "decoder")
HALF = 2e-2
"""Largest difference of half precision from float32, in units of the largest value."""
SIZES = ((2, 16), (2, 16), (2, 16), (4, 8), (4, 8), (2, 16))
"""(rows, side in latents): the second call of a size is captured, the third replayed."""


def source_of(bundle: Path, graph: str) -> Source:
    return Source.of(bundle, read_manifest(bundle), graph)


def inputs_of(bundle: Path, module: GraphModule, rows: int, side: int) -> Tensors:
    latents = read_manifest(bundle).latents
    return example_inputs(module, latents, rows=rows, height=side, width=side)


class Refits(NamedTuple):
    """Differences from torch before and after a refit, what the refit changed, and whether the last
    outputs are the first ones, bit for bit.
    """

    before: float
    effect: float
    refitted: list[float]
    restored: bool


@torch.no_grad()
def refit_and_back(engine: Engine, reference: GraphModule, inputs: Tensors) -> Refits:
    """Double some weights in both, and restore the engine's; runs in between are captured."""
    names = [n for n, p in reference.named_parameters() if ".to_" in n and p.ndim == 2]
    base = {name: reference.get_parameter(name).detach().clone() for name in names}
    first = [engine.run(inputs) for _ in range(4)][-1]
    before = difference(run(reference, inputs), first)
    engine.refit({name: 2 * weight for name, weight in base.items()})
    for name in names:
        reference.get_parameter(name).mul_(2)
    expected = run(reference, inputs)
    refitted = [difference(expected, engine.run(inputs)) for _ in range(3)]
    engine.refit(base)
    last = engine.run(inputs)
    restored = all(torch.equal(last[name], first[name]) for name in first)
    return Refits(before, difference(expected, first), refitted, restored)


@pytest.mark.parametrize("name", [*VARIANTS, "sd15-fp16"])
def test_the_torch_engine_on_cuda(small: Make, name: str) -> None:
    bundle = small(name).bundle
    assert chosen_kind(bundle) == "torch"
    for graph in (*VARIANTS[small(name).variant].text_encoders, *UNET, "vae_decoder"):
        source = source_of(bundle, graph)
        reference = open_module(source).float()
        engine = open_engine("torch", source)
        for rows, side in SIZES:
            inputs = inputs_of(bundle, reference, rows, side)
            outputs = engine.run(inputs)
            assert all(tensor.is_cuda for tensor in outputs.values())
            seen = difference(run(reference, inputs), outputs)
            assert seen <= HALF, (graph, rows, side)


def test_the_halves_stay_on_the_device(small: Make) -> None:
    bundle = small("sd15").bundle
    encoder, decoder = (open_engine("torch", source_of(bundle, f"unet_{h}")) for h in HALVES)
    references = [open_module(source_of(bundle, f"unet_{half}")) for half in HALVES]
    for _ in range(4):
        inputs = inputs_of(bundle, references[0], 2, 16)
        encoded = encoder.run(inputs)
        assert all(tensor.is_cuda for tensor in encoded.values())
        found = decoder.run({**encoded, "encoder_hidden_states": inputs["encoder_hidden_states"]})
        whole = run(references[1], decoder_inputs(inputs, run(references[0], inputs)))
        assert difference(whole, found) <= HALF


def test_outputs_of_a_recording_are_the_callers_to_keep(small: Make) -> None:
    bundle = small("sd15").bundle
    source = source_of(bundle, "unet_encoder")
    engine, reference = open_engine("torch", source), open_module(source)
    first = inputs_of(bundle, reference, 2, 16)
    for _ in range(3):
        kept = engine.run(first)
    before = {name: tensor.clone() for name, tensor in kept.items()}
    engine.run(inputs_of(bundle, reference, 2, 16))
    torch.cuda.synchronize()
    assert all(torch.equal(kept[name], before[name]) for name in before)


def test_recordings_see_refits(small: Make) -> None:
    bundle = small("sd15").bundle
    source = source_of(bundle, "unet_encoder")
    engine, reference = open_engine("torch", source), open_module(source)
    seen = refit_and_back(engine, reference, inputs_of(bundle, reference, 2, 16))
    assert seen.effect > 2 * HALF, "weights without effect would prove nothing"
    assert max(seen.before, *seen.refitted) <= HALF
    assert seen.restored


@pytest.mark.parametrize("graphs", [0, 4], ids=["plain", "captured"])
def test_a_compiled_module(small: Make, graphs: int) -> None:
    bundle = small("sd15").bundle
    module = open_module(source_of(bundle, "unet_encoder"))
    reference = open_module(source_of(bundle, "unet_encoder"))
    engine = TorchEngine(module, device="cuda", dtype=torch.float16, graphs=graphs, compiled=True)
    seen = refit_and_back(engine, reference, inputs_of(bundle, reference, 2, 16))
    assert seen.effect > 2 * HALF, "weights without effect would prove nothing"
    assert max(seen.before, *seen.refitted) <= HALF
    assert seen.restored


def test_plans_are_built_run_and_refitted(small: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="needs TensorRT")
    from tessera_build.tensorrt import PolygraphyCompiler

    bundle = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, bundle)
    compiler = PolygraphyCompiler()
    jobs = plan_jobs(
        bundle,
        precision="fp16",
        architecture=compiler.architecture,
        tensorrt=compiler.version,
    )
    for job in jobs:
        capture = compile_job(job, compiler, bundle)  # raises when the canary dies
        assert capture.canary_refitted <= HALF
    assert chosen_kind(bundle) == "tensorrt"
    source = source_of(bundle, "unet_encoder")
    reference = open_module(source)
    engine = open_engine("tensorrt", source)
    assert isinstance(engine, WatchedEngine)
    for rows, side in ((1, 8), *SIZES, (2, 32)):
        inputs = inputs_of(bundle, reference, rows, side)
        assert difference(run(reference, inputs), engine.run(inputs)) <= HALF, (rows, side)
    seen = refit_and_back(engine, reference, inputs_of(bundle, reference, 2, 16))
    assert seen.effect > 2 * HALF, "weights without effect would prove nothing"
    assert max(seen.before, *seen.refitted) <= HALF
    assert seen.restored


def test_a_stripped_plan_gets_its_weights_when_it_is_opened(small: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="needs TensorRT")
    from tessera_build.tensorrt import PolygraphyCompiler

    bundle = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, bundle)
    compiler = PolygraphyCompiler()
    machine = {"architecture": compiler.architecture, "tensorrt": compiler.version}
    jobs = plan_jobs(bundle, precision="fp16", stripped=True, **machine)
    compile_job(next(j for j in jobs if j.key.graph == "vae_decoder"), compiler, bundle)
    source = source_of(bundle, "vae_decoder")
    reference = open_module(source)
    inputs = inputs_of(bundle, reference, 2, 16)
    image = open_engine("tensorrt", source).run(inputs)
    assert difference(run(reference, inputs), image) <= HALF

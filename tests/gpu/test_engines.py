"""The torch and TensorRT engines on a GPU against torch on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tessera.engines.registry import Source, chosen_kind, open_engine, open_module
from tessera.manifest import read_manifest
from tessera.variants import VARIANTS
from tessera_build.compile import compile_job, plan_jobs
from tessera_build.examples import example_inputs, run
from tests.conftest import Small

Make = Callable[[str], Small]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_torch_engine_on_cuda(small: Make, variant: str) -> None:
    bundle = small(variant).bundle
    manifest = read_manifest(bundle)
    assert chosen_kind(bundle) == "torch"
    for graph in ("text_encoder", "unet_encoder", "vae_decoder"):
        source = Source.of(bundle, manifest, graph)
        reference = open_module(source)
        inputs = example_inputs(reference, manifest.latents, rows=2, height=16, width=16)
        outputs = open_engine("torch", source).run(inputs)
        for name, expected in run(reference, inputs).items():
            assert outputs[name].is_cuda
            error = (outputs[name].float().cpu() - expected).abs().max()
            assert error <= 2e-2 * expected.abs().max(), f"{graph}: {name}"


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
        record = compile_job(job, compiler, bundle)  # raises when the canary dies
        assert record.canary_refitted <= 2e-2
    assert chosen_kind(bundle) == "tensorrt"
    manifest = read_manifest(bundle)
    source = Source.of(bundle, manifest, "unet_encoder")
    reference = open_module(source)
    for rows, side in ((1, 8), (4, 16), (2, 32)):
        inputs = example_inputs(reference, manifest.latents, rows=rows, height=side, width=side)
        outputs = open_engine("tensorrt", source).run(inputs)
        for name, expected in run(reference, inputs).items():
            error = (outputs[name].float().cpu() - expected).abs().max()
            assert error <= 2e-2 * expected.abs().max(), name
    torch.cuda.synchronize()

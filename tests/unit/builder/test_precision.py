"""Bundles in half precision: what is stored, and how a checkpoint gets there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tessera.errors import BundleError
from tessera.manifest import read_manifest
from tessera.networks.weights import DTYPES, Initializers, to_layout
from tessera.variants import VARIANTS
from tessera_build.checkpoint import checkpoint_precision, open_checkpoint
from tessera_build.precision import PRECISIONS, stored_type
from tests.samples.bundles import IN_HALF
from tests.samples.graphs import Make, spec_of

OF_UNET = ("encoder", "decoder", "encoder_lowrank", "decoder_lowrank", "sparse", "text")


@pytest.mark.parametrize("name", IN_HALF)
def test_every_graph_has_the_rounded_weights(small: Make, name: str) -> None:
    made = small(name)
    manifest, dtype = read_manifest(made.bundle), PRECISIONS[name.partition("-")[2]]
    assert manifest.precision == name.partition("-")[2]
    for graph, entry in manifest.graphs.items():
        held = Initializers(made.bundle / entry.file)
        for weight, parameter in spec_of(made, graph).module.named_parameters():
            expected = to_layout(weight, parameter.detach(), entry.layout)
            assert held[weight].dtype == dtype
            assert torch.equal(held[weight].float(), expected), f"{graph}: {weight}"


@pytest.mark.parametrize("name", ["sd15", *IN_HALF])
def test_the_unet_s_weights_are_stored_once(small: Make, name: str) -> None:
    made = small(name)
    manifest = read_manifest(made.bundle)
    stored: dict[str, Any] = {}
    for graph in OF_UNET:
        entry = manifest.graphs[f"unet_{graph}"]
        model = onnx.load(made.bundle / entry.file, load_external_data=False)
        for initializer in model.graph.initializer:
            if initializer.external_data:
                first = stored.setdefault(initializer.name, initializer)
                assert initializer == first, f"{graph}: {initializer.name}"
            elif initializer.data_type in DTYPES:
                assert len(initializer.raw_data) <= 1024
        files = {f"graphs/unet_{half}.onnx.data" for half in ("encoder", "decoder")}
        assert set(entry.shares) <= {"unet_encoder", "unet_decoder"}
        assert files & set(manifest.files_of(f"unet_{graph}"))
    parameters = dict(made.pipe.unet.named_parameters())
    assert {n for n, p in parameters.items() if p.numel() > 512} <= stored.keys()
    data = sum(e.bytes for f, e in manifest.files.items() if f.endswith(".data"))
    width = PRECISIONS[manifest.precision].itemsize
    assert data < 1.01 * width * sum(p.numel() for p in parameters.values())


@pytest.mark.parametrize(
    ("part", "variant", "config", "overflows"),
    [
        ("vae_decoder", "sdxl", {}, True),
        ("vae", "sdxl", {"force_upcast": True}, True),
        ("vae_encoder", "sdxl", {"force_upcast": False}, False),
        ("vae_decoder", "sd15", {"force_upcast": True}, False),
        ("unet_encoder", "sdxl", {}, False),
    ],
    ids=["XL's", "said so", "fp16-fix", "1.5's", "a UNet"],
)
def test_what_overflows_in_half_stays_in_float32(
    part: str, variant: str, config: Mapping[str, Any], overflows: bool
) -> None:
    for precision, dtype in PRECISIONS.items():
        expected = torch.float32 if overflows else dtype
        assert stored_type(part, precision, VARIANTS[variant], config) == expected


@pytest.fixture(params=["fp16", "bf16"])
def halved(request: pytest.FixtureRequest, copy: Path) -> Path:
    """A checkpoint in half precision."""
    for file in copy.rglob("*.safetensors"):
        weights = {n: w.to(PRECISIONS[request.param]) for n, w in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
    return copy


def test_a_checkpoint_s_own_precision_is_the_default(
    small: Make, halved: Path, request: pytest.FixtureRequest
) -> None:
    own = request.node.callspec.params["halved"]
    assert checkpoint_precision(halved) == own
    assert checkpoint_precision(small("sd15").checkpoint) == "fp32"
    assert checkpoint_precision(next((halved / "unet").glob("*.safetensors"))) == own
    pipe, _ = open_checkpoint(halved, precision=own)
    assert {p.dtype for p in pipe.unet.parameters()} == {PRECISIONS[own]}
    assert {p.dtype for p in open_checkpoint(halved)[0].unet.parameters()} == {torch.float32}


def test_a_folder_may_have_files_in_half_beside_others_or_alone(copy: Path) -> None:
    def unet(precision: str) -> UNet2DConditionModel:
        return open_checkpoint(copy, precision=precision)[0].unet

    files = list(copy.rglob("*.safetensors"))
    for file in files:
        weights = {n: w.half() + 1 for n, w in load_file(file).items() if w.is_floating_point()}
        beside = file.with_name(f"{file.stem}.fp16.safetensors")
        save_file(weights, beside, metadata={"format": "pt"})
    plain, half = unet("fp32").conv_in.weight, unet("fp16").conv_in.weight
    torch.testing.assert_close(half.float(), plain + 1, atol=2e-3, rtol=0)
    assert checkpoint_precision(copy) == "fp32"
    for file in files:
        file.unlink()
    assert checkpoint_precision(copy) == "fp16"
    assert torch.equal(unet("fp32").conv_in.weight, half.float())


def test_a_checkpoint_that_cannot_be_read_has_no_precision(copy: Path) -> None:
    for file in (copy / "unet").glob("*.safetensors"):
        file.write_bytes(b"?")
    with pytest.raises(BundleError, match="cannot be read"):
        checkpoint_precision(copy)
    shutil.rmtree(copy / "unet")
    assert json.loads((copy / "model_index.json").read_text())["unet"]
    with pytest.raises(BundleError, match="cannot be read"):
        checkpoint_precision(copy)

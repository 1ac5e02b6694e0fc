"""Graphs and bundles from a checkpoint with random weights, against the torch modules."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from diffusers import StableDiffusionPipeline
from onnx import numpy_helper

from tessera.errors import BundleError
from tessera.manifest import Defaults, Limits, Manifest, read_manifest
from tessera_build import modules
from tessera_build.bundle import build_bundle, is_current
from tessera_build.export import to_layout
from tessera_build.graphs import graphs_of
from tests.fakes.checkpoint import TEXT_WIDTH, sd15_pipeline

GRAPHS = ("text_encoder", "unet_encoder", "unet_decoder", "vae_decoder")
DEFAULTS = Defaults(steps=4, guidance=4.0, width=64, height=64, scheduler="euler")
LIMITS = Limits(min_size=32, max_size=128, max_rows=4)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return sd15_pipeline()


@pytest.fixture(scope="module")
def checkpoint(pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("checkpoint") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bundles") / "small"
    build(checkpoint, folder)
    return folder


def build(checkpoint: Path, out: Path, fail_at: int = -1) -> Manifest:
    def progress(what: str, done: int, total: int) -> None:
        if done == fail_at:
            raise KeyboardInterrupt

    return build_bundle(checkpoint, out, defaults=DEFAULTS, limits=LIMITS, progress=progress)


def session(bundle: Path, graph: str) -> ort.InferenceSession:
    return ort.InferenceSession(
        str(bundle / "graphs" / f"{graph}.onnx"), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_weight_keeps_its_name_and_value(
    pipe: StableDiffusionPipeline, bundle: Path, graph: str
) -> None:
    spec = next(s for s in graphs_of(pipe) if s.name == graph)
    model = onnx.load(bundle / "graphs" / f"{graph}.onnx")
    held = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    layout = read_manifest(bundle).graphs[graph].layout
    for name, parameter in spec.module.named_parameters():
        expected = to_layout(name, parameter.detach().numpy(), layout)
        np.testing.assert_array_equal(held[name], expected, err_msg=name)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    ("rows", "height", "width"), [(1, 16, 16), (3, 10, 14), (2, 9, 13)], ids=str
)
def test_graphs_compute_what_torch_computes(
    pipe: StableDiffusionPipeline, bundle: Path, graph: str, rows: int, height: int, width: int
) -> None:
    spec = next(s for s in graphs_of(pipe) if s.name == graph)
    inputs = _inputs(pipe, graph, rows, height, width)
    with torch.no_grad():
        expected = spec.module(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    outputs = session(bundle, graph).run(
        list(spec.signature.outputs), {k: v.numpy() for k, v in inputs.items()}
    )
    for name, output, value in zip(spec.signature.outputs, outputs, expected, strict=True):
        np.testing.assert_allclose(output, value, atol=1e-4, rtol=1e-4, err_msg=name)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 13)], ids=str)
def test_the_halves_make_the_whole_unet(
    pipe: StableDiffusionPipeline, height: int, width: int
) -> None:
    sample, timestep, text = _inputs(pipe, "unet_encoder", 3, height, width).values()
    mid, emb, *skips = modules.UNetEncoder(pipe.unet)(sample, timestep, text)
    halves = modules.UNetDecoder(pipe.unet)(mid, emb, text, *skips)
    whole = pipe.unet(sample, timestep, text).sample
    assert (halves - whole).abs().max() <= 1e-5


def test_a_bundle_is_current_until_something_changes(
    checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    assert is_current(bundle, checkpoint)
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert not is_current(bundle, other)
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    (damaged / "graphs" / "vae_decoder.onnx").write_bytes(b"nothing")
    assert not is_current(damaged, checkpoint)
    assert not is_current(tmp_path / "none", checkpoint)


def test_an_interrupted_build_leaves_the_older_bundle_and_nothing_else(
    checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundles" / "small"
    shutil.copytree(bundle, out)
    with pytest.raises(KeyboardInterrupt):
        build(checkpoint, out, fail_at=1)
    assert [p.name for p in out.parent.iterdir()] == ["small"]
    assert is_current(out, checkpoint)


def test_a_new_bundle_takes_the_place_of_the_older(
    checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    out.mkdir()
    (out / "stray").touch()
    manifest = build(checkpoint, out)
    assert not (out / "stray").exists()
    assert manifest.digest == read_manifest(out).digest == read_manifest(bundle).digest


def test_what_is_no_checkpoint_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a diffusers checkpoint.*model_index\.json"):
        build(tmp_path, tmp_path / "out")


def _inputs(
    pipe: StableDiffusionPipeline, graph: str, rows: int, height: int, width: int
) -> dict[str, torch.Tensor]:
    torch.manual_seed(rows)
    if graph == "text_encoder":
        size = pipe.text_encoder.config.vocab_size
        return {"input_ids": torch.randint(0, size, (rows, pipe.tokenizer.model_max_length))}
    latents = torch.randn(rows, 4, height, width)
    if graph == "vae_decoder":
        return {"latents": latents}
    text = torch.randn(rows, 77, TEXT_WIDTH)
    inputs = {
        "sample": latents,
        "timestep": torch.linspace(1, 900, rows),
        "encoder_hidden_states": text,
    }
    if graph == "unet_encoder":
        return inputs
    with torch.no_grad():
        mid, emb, *skips = modules.UNetEncoder(pipe.unet)(*inputs.values())
    named = {f"skip_{i}": skip for i, skip in enumerate(skips)}
    return {"mid": mid, "emb": emb, "encoder_hidden_states": text, **named}

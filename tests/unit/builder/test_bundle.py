"""Bundles: whole or not at all, and refusals in one sentence."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from typer.testing import CliRunner

import tessera_build.bundle as module
from tessera.engines.bundle import Bundle
from tessera.errors import BundleError
from tessera.manifest import (
    LOWRANK,
    FileEntry,
    Manifest,
    file_digest,
    read_manifest,
    write_manifest,
)
from tessera.variants import VARIANTS
from tessera_build.addons import AddOns
from tessera_build.bundle import Choices, build_bundle, is_current
from tessera_build.checkpoint import find_checkpoint, open_checkpoint, variant_of
from tessera_build.cli import app
from tessera_build.graphs import graphs_of
from tessera_build.verify import tolerance_of, verify_bundle
from tests.conftest import Small

Make = Callable[[str], Small]
CHOICES = Choices(steps=4, lora_bound=0.3)


def build(checkpoint: Path, out: Path, fail_at: str = "", choices: Choices = CHOICES) -> Manifest:
    def progress(what: str, done: int, total: int) -> None:
        if what == fail_at:
            raise KeyboardInterrupt

    return build_bundle(checkpoint, out, choices=choices, progress=progress)


@pytest.fixture
def copy(small: Make, tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(small("sd15").checkpoint, folder)
    return folder


@pytest.mark.parametrize(
    ("variant", "scheduler", "guidance"),
    [("sd15", "dpmpp_2m_karras", 7.5), ("sd21", "ddim", 7.5), ("sdxl", "euler", 5.0)],
)
def test_the_checkpoint_decides(small: Make, variant: str, scheduler: str, guidance: float) -> None:
    manifest = read_manifest(small(variant).bundle)
    assert manifest.variant == variant
    assert (manifest.defaults.scheduler, manifest.defaults.guidance) == (scheduler, guidance)
    assert (manifest.defaults.steps, manifest.defaults.width) == (4, 128)
    assert (manifest.limits.min_size, manifest.limits.max_size) == (64, 256)
    assert (manifest.latents.pixels, manifest.latents.channels) == (8, 4)
    assert manifest.zero_negative == (variant == "sdxl")
    assert manifest.controlnets == ("edges",)
    for name in manifest.files:  # where the checkpoint was must not make another bundle of it
        if name.endswith(".json"):
            assert str(small(variant).checkpoint) not in (small(variant).bundle / name).read_text()
    folders = {name.split("/")[0] for name in manifest.files}
    assert folders == {"graphs", "networks", "scheduler", *VARIANTS[variant].tokenizers}


def test_a_bundle_is_current_until_something_changes(small: Make, copy: Path) -> None:
    bundle, addons = small("sd15").bundle, small("sd15").addons
    assert is_current(bundle, copy, CHOICES, addons)
    assert not is_current(bundle, copy, Choices(steps=5), addons)
    assert not is_current(bundle, copy, CHOICES)
    renamed = AddOns({"lines": addons.controlnets["edges"]})
    assert not is_current(bundle, copy, CHOICES, renamed)
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert not is_current(bundle, copy, CHOICES, addons)
    damaged = copy.parent / "damaged"
    shutil.copytree(bundle, damaged)
    (damaged / "graphs" / "vae_decoder.onnx").write_bytes(b"nothing")
    assert not is_current(damaged, small("sd15").checkpoint, CHOICES, addons)
    assert not is_current(copy.parent / "none", copy, CHOICES)


def test_an_interrupted_build_leaves_the_older_bundle_and_nothing_else(
    small: Make, tmp_path: Path
) -> None:
    made = small("sd15")
    out = tmp_path / "bundles" / "small"
    shutil.copytree(made.bundle, out)
    with pytest.raises(KeyboardInterrupt):
        build(made.checkpoint, out, fail_at="unet_encoder")
    assert {p.name for p in out.parent.iterdir()} <= {"small", ".small.lock"}
    assert is_current(out, made.checkpoint, CHOICES, made.addons)


def test_a_new_bundle_takes_the_place_of_the_older(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small("sd15")
    monkeypatch.setattr(module, "graphs_of", lambda *_, **__: [])
    out = tmp_path / "small"
    out.mkdir()
    (out / "stray").touch()
    manifest = build(made.checkpoint, out)
    assert manifest.digest == read_manifest(out).digest
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    assert not (out / "stray").exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **options: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint = small("sd15").checkpoint
    monkeypatch.setattr(module, "export_graph", full)
    with pytest.raises(BundleError, match=r"could not be written: No space left on device"):
        build(checkpoint, tmp_path / "out" / "small")
    assert not [p for p in (tmp_path / "out").iterdir() if p.is_dir()]


@pytest.mark.parametrize("limit", [10_000, 100_000], ids=["in a tokenizer", "in a graph"])
def test_files_that_cannot_grow_are_one_sentence(small: Make, tmp_path: Path, limit: int) -> None:
    """A real limit of the system, which libraries in C++ and Rust meet as well."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "from tessera_build.cli import main; main()"
    )
    out = tmp_path / "bundles" / "small"
    line = [sys.executable, "-c", code, "bundle", str(small("sd15").checkpoint), "-o", str(out)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(rf"^tessera-build: {out} could not be written: .*", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert not list(out.parent.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(small: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"file/small could not be written: "):
        build(small("sd15").checkpoint, tmp_path / "file" / "small")


def test_two_builds_into_one_folder(small: Make, tmp_path: Path) -> None:
    def second(what: str, done: int, total: int) -> None:
        build(small("sd15").checkpoint, tmp_path / "small")

    with pytest.raises(BundleError, match=r"another build is writing to .*small"):
        build_bundle(small("sd15").checkpoint, tmp_path / "small", choices=CHOICES, progress=second)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (Choices(scheduler="best"), r"scheduler 'best' is unknown; accepted: euler"),
        (Choices(size=100), r"\(64, 100, 256\); accepted: multiples of 8"),
        (Choices(max_size=64), r"\(64, 128, 64\); accepted: .* ascending"),
    ],
    ids=["scheduler", "odd size", "limits crossed"],
)
def test_choices_that_do_not_fit(
    small: Make, tmp_path: Path, choices: Choices, sentence: str
) -> None:
    with pytest.raises(BundleError, match=sentence):
        build(small("sd15").checkpoint, tmp_path / "out", choices=choices)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere/at/all", "does not exist; accepted: a diffusers folder"),
        ("model.ckpt", "is a pickle, which can run code; accepted: safetensors"),
        ("weights.bin", "is a pickle"),
    ],
)
def test_sources_that_are_none(source: str, sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        find_checkpoint(source)


def test_folders_and_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a diffusers checkpoint.*model_index\.json"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BundleError, match=r"is not a safetensors file"):
        find_checkpoint(str(tmp_path / "notes.txt"))


def test_weights_in_pickles_are_refused(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(BundleError, match=r"unet has no safetensors weights"):
        open_checkpoint(copy)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_truncated_weights_are_one_sentence(copy: Path, part: str, tmp_path: Path) -> None:
    weights = next((copy / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    result = CliRunner().invoke(app, ["bundle", str(copy), "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, BundleError)
    assert "cannot be read" in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1
    assert not (tmp_path / "out").exists()


UNET = {"in_channels": 4, "cross_attention_dim": 768}
XL = {"in_channels": 4, "cross_attention_dim": 2048, "addition_embed_type": "text_time"}


@pytest.mark.parametrize(
    ("pipeline", "unet", "variant"),
    [
        ("StableDiffusionPipeline", UNET, "sd15"),
        ("StableDiffusionPipeline", UNET | {"use_linear_projection": True}, "sd15"),
        ("StableDiffusionPipeline", UNET | {"cross_attention_dim": 1024}, "sd21"),
        ("StableDiffusionXLPipeline", XL, "sdxl"),
    ],
    ids=["1.5", "1.5 with linear layers", "2.1", "XL"],
)
def test_rows_of_the_table(pipeline: str, unet: dict[str, object], variant: str) -> None:
    assert variant_of(pipeline, unet) == variant


@pytest.mark.parametrize(
    ("pipeline", "unet", "sentence"),
    [
        ("StableDiffusion3Pipeline", {}, "is a StableDiffusion3Pipeline"),
        ("StableDiffusionPipeline", UNET | {"in_channels": 9}, "a UNet of 9 input channels"),
        ("StableDiffusionPipeline", UNET | {"class_embed_type": "timestep"}, "conditions its"),
        ("StableDiffusionXLPipeline", UNET, "StableDiffusionXLPipeline with addition_embed_type"),
    ],
    ids=["transformer", "inpainting", "unclip", "odd XL"],
)
def test_unsupported_kinds_are_told_what_is(
    pipeline: str, unet: dict[str, object], sentence: str
) -> None:
    with pytest.raises(BundleError, match=sentence) as raised:
        variant_of(pipeline, unet)
    assert "supported: Stable Diffusion 1.x (sd15)" in str(raised.value)


def test_a_refiner_is_told_so(small: Make, tmp_path: Path) -> None:
    folder = tmp_path / "refiner"
    shutil.copytree(small("sdxl").checkpoint, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BundleError, match="has no text_encoder, as refiners do"):
        open_checkpoint(folder)


@pytest.mark.parametrize("half", ["unet_encoder", "unet_decoder"])
def test_halves_with_low_rank_inputs_share_the_weights_of_the_others(
    small: Make, half: str, tmp_path: Path
) -> None:
    made = small("sd15").bundle
    manifest, graph = read_manifest(made), f"{half}{LOWRANK}"
    data = f"graphs/{half}.onnx.data"
    assert manifest.files_of(graph) == [f"graphs/{graph}.onnx", f"graphs/{half}.onnx", data]
    assert manifest.files[f"graphs/{graph}.onnx"].bytes < manifest.files[data].bytes / 2
    held = {i.name: i for i in _initializers(made, graph)}
    for initializer in _initializers(made, half):
        if initializer.name.endswith(".weight") and initializer.external_data:
            assert held[initializer.name] == initializer
    shutil.copytree(made, tmp_path / "bundle")
    with (tmp_path / "bundle" / data).open("r+b") as file:
        file.write(b"?")
    with pytest.raises(BundleError, match=r"onnx\.data is not the file of the manifest"):
        Bundle(tmp_path / "bundle").engine(graph)


def test_a_bundle_may_do_without_the_side_path(small: Make) -> None:
    made = small("sd15")
    names = {s.name for s in graphs_of(made.pipe, VARIANTS["sd15"], lowrank=False)}
    everything = {s.name for s in graphs_of(made.pipe, VARIANTS["sd15"])}
    assert everything - names == {f"unet_encoder{LOWRANK}", f"unet_decoder{LOWRANK}"}
    assert read_manifest(made.bundle).limits.lora_rank == CHOICES.lora_rank == 64


@pytest.mark.parametrize("variant", VARIANTS)
def test_verify_finds_all_well_and_writes_it_down(
    small: Make, variant: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small(variant).bundle, bundle)
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 0, result.output
    manifest = read_manifest(bundle)
    assert set(manifest.verification) == set(manifest.graphs)
    for graph, found in manifest.verification.items():
        assert 0 <= found.difference <= 1e-4, graph
        assert found.cases == 2
        if graph != "unet_text":  # matrix products alone: some machines give the same bits
            assert found.difference > 0, f"{graph}: not compared with itself"


def test_verify_takes_other_engines_as_well(small: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, bundle)
    verify_bundle(bundle, kinds=("onnxruntime", "torch"))
    manifest = read_manifest(bundle)
    assert set(manifest.verification) == {
        f"{g}{k}" for g in manifest.graphs for k in ("", "@torch")
    }
    assert manifest.verification["unet_decoder@torch"].difference <= 1e-5
    assert (tolerance_of("unet_decoder"), tolerance_of("unet_decoder@torch")) == (1e-4, 2e-2)


def test_verify_finds_a_graph_that_computes_something_else(small: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, bundle)
    path = bundle / "networks" / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"act_fn": "relu"}))
    manifest = read_manifest(bundle)
    entry = FileEntry(path.stat().st_size, file_digest(path))
    files = manifest.files | {"networks/vae/config.json": entry}
    write_manifest(bundle, dataclasses.replace(manifest, files=files))
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 1
    assert "differs" in result.output


def test_verify_refuses_a_bundle_edited_by_hand(small: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, bundle)
    (bundle / "scheduler" / "scheduler_config.json").write_text("{}")
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert isinstance(result.exception, BundleError)
    assert "scheduler_config.json has 2 bytes" in str(result.exception)


def _initializers(bundle: Path, graph: str) -> list[onnx.TensorProto]:
    model = onnx.load(bundle / "graphs" / f"{graph}.onnx", load_external_data=False)
    return list(model.graph.initializer)

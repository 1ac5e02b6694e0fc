"""Checkpoints: which are supported, and refusals in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tessera.errors import BundleError
from tessera_build.checkpoint import find_checkpoint, open_checkpoint, variant_of
from tessera_build.cli import app
from tests.samples.checkpoints import Saved


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
        ("StableDiffusionInpaintPipeline", UNET | {"in_channels": 9}, "sd15"),
        ("StableDiffusionXLInpaintPipeline", XL | {"in_channels": 9}, "sdxl"),
    ],
    ids=["1.5", "1.5 with linear layers", "2.1", "XL", "inpainting", "XL inpainting"],
)
def test_rows_of_the_table(pipeline: str, unet: dict[str, object], variant: str) -> None:
    assert variant_of(pipeline, unet) == variant


@pytest.mark.parametrize(
    ("pipeline", "unet", "sentence"),
    [
        ("StableDiffusion3Pipeline", {}, "is a StableDiffusion3Pipeline"),
        ("StableDiffusionPipeline", UNET | {"in_channels": 8}, "a UNet of 8 input channels"),
        ("StableDiffusionPipeline", UNET | {"class_embed_type": "timestep"}, "conditions its"),
        ("StableDiffusionXLPipeline", UNET, "StableDiffusionXLPipeline with addition_embed_type"),
    ],
    ids=["transformer", "image editing", "unclip", "odd XL"],
)
def test_unsupported_kinds_are_told_what_is(
    pipeline: str, unet: dict[str, object], sentence: str
) -> None:
    with pytest.raises(BundleError, match=sentence) as raised:
        variant_of(pipeline, unet)
    assert "supported: Stable Diffusion 1.x (sd15)" in str(raised.value)


def test_a_refiner_is_told_so(saved: Callable[[str], Saved], tmp_path: Path) -> None:
    folder = tmp_path / "refiner"
    shutil.copytree(saved("sdxl").folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BundleError, match="has no text_encoder, as refiners do"):
        open_checkpoint(folder)

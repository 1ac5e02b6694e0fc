"""Checkpoints in the forms that people have reported (docs/internals/files-tried.md), at small
widths and with random weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tessera.errors import BundleError
from tessera.types import Tensors
from tessera.variants import VARIANTS
from tessera_build.checkpoint import checkpoint_precision, find_checkpoint, open_checkpoint
from tests.fakes.single_file import write_single_file
from tests.samples.checkpoints import Saved

Make = Callable[[str], Saved]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
SECOND = "conditioner.embedders.1.model."


def positions(weights: Tensors) -> None:
    """An old transformers' buffer, in float16 and merged: CLIP reads no positions from it."""
    weights[f"{TEXT}embeddings.position_ids"] = torch.arange(77)[None].half() + 0.4


def training_state(weights: Tensors) -> None:
    """What a training script leaves: moving averages, the schedule, the VAE's discriminator."""
    for name in [n for n in weights if n.startswith(UNET)]:
        weights[f"model_ema.{name.removeprefix(UNET).replace('.', '')}"] = torch.zeros(2)
    for name in ("alphas_cumprod", "betas", "sqrt_alphas_cumprod", "model_ema.decay"):
        weights[name] = torch.zeros(1000)
    weights["global_step"] = torch.tensor(470000)
    weights[f"{VAE}loss.discriminator.main.0.weight"] = torch.zeros(4, 3, 4, 4)


def leftovers_of_xl(weights: Tensors) -> None:
    """What sgm's checkpoints have beside weights."""
    weights["denoiser.sigmas"] = torch.zeros(1000)
    weights[f"{SECOND}logit_scale"] = torch.tensor(4.6)


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        ("sd15", positions),
        ("sd15", training_state),
        ("sdxl", leftovers_of_xl),
    ],
    ids=["position_ids", "training", "denoiser"],
)
def test_a_single_file_with_more_or_other_tensors(
    saved: Make, tmp_path: Path, variant: str, change: Callable[[Tensors], None]
) -> None:
    made, path = saved(variant), tmp_path / "a.safetensors"
    write_single_file(made.pipe, path)
    weights = load_file(path)
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    pipe, found = open_checkpoint(path, config=made.folder)
    assert found == variant
    assert_same(pipe, made, variant)


def test_a_projection_by_another_name_is_missed(saved: Make, tmp_path: Path) -> None:
    """As diffusers' conversion script wrote it. Diffusers leaves the parameter empty."""
    made, path = saved("sdxl"), tmp_path / "a.safetensors"
    write_single_file(made.pipe, path)
    weights = load_file(path)
    projection = weights.pop(f"{SECOND}text_projection").T.contiguous()
    save_file(weights | {f"{SECOND}text_projection.weight": projection}, path)
    with pytest.raises(BundleError, match=r"lacks 1 tensors of its text_encoder_2, first text_p"):
        open_checkpoint(path, config=made.folder)


def assert_same(pipe: Any, made: Saved, variant: str) -> None:
    for name in ("unet", "vae", *VARIANTS[variant].text_encoders):
        held, expected = (getattr(p, name).state_dict() for p in (pipe, made.pipe))
        assert held.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(held[key].to(tensor.dtype), tensor), f"{name}.{key}"


def test_a_vae_in_another_precision_than_the_rest(saved: Make, tmp_path: Path) -> None:
    made, path = saved("sd15-fp16"), tmp_path / "a.safetensors"
    write_single_file(made.pipe, path)
    weights = {n: t if n.startswith(VAE) else t.half() for n, t in load_file(path).items()}
    save_file(weights, path)
    assert checkpoint_precision(path) == "fp16"
    assert_same(open_checkpoint(path, config=made.folder)[0], made, "sd15")


def test_weights_in_float8(saved: Make, tmp_path: Path) -> None:
    """As pruned files are offered. They are read as float16 would be."""
    made, path = saved("sd15"), tmp_path / "a.safetensors"
    write_single_file(made.pipe, path)
    weights = load_file(path)
    small_ones = {n: t.to(torch.float8_e4m3fn) for n, t in weights.items() if n.startswith(UNET)}
    save_file(weights | small_ones, path)
    assert checkpoint_precision(path) == "fp16"
    pipe, _ = open_checkpoint(path, config=made.folder, precision="fp16")
    expected = made.pipe.unet.state_dict()
    for name, tensor in pipe.unet.state_dict().items():
        assert torch.equal(tensor, expected[name].to(torch.float8_e4m3fn).half()), name


@pytest.mark.filterwarnings("ignore:This serialization format:FutureWarning")
@pytest.mark.parametrize(
    "names",
    [
        "{stem}-{n:05}-of-00002.safetensors {stem}.safetensors.index.json",
        "{stem}.fp16-{n:05}-of-00002.safetensors {stem}.safetensors.index.fp16.json",
        "{stem}-{n:05}-of-00002.fp16.safetensors {stem}.safetensors.fp16.index.json",
    ],
    ids=["plain", "fp16", "fp16 of older versions"],
)
def test_a_unet_in_two_files(saved: Make, copy: Path, names: str) -> None:
    (whole,) = (copy / "unet").glob("*.safetensors")
    weights = list(load_file(whole).items())
    whole.unlink()
    file, index = names.split()
    places: dict[str, str] = {}
    for number, part in enumerate((weights[::2], weights[1::2]), start=1):
        name = file.format(stem=whole.stem, n=number)
        save_file(dict(part), copy / "unet" / name, {"format": "pt"})
        places |= {key: name for key, _ in part}
    content = {"metadata": {"total_size": 1}, "weight_map": places}
    (copy / "unet" / index.format(stem=whole.stem)).write_text(json.dumps(content))
    pipe, _ = open_checkpoint(copy)
    assert_same(pipe, saved("sd15"), "sd15")


def test_a_vae_with_the_names_of_older_diffusers(saved: Make, copy: Path) -> None:
    (path,) = (copy / "vae").glob("*.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in load_file(path).items():
        for ours, theirs in old.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        weights[name] = tensor
    assert sum("query" in name for name in weights) == 4
    save_file(weights, path, {"format": "pt"})
    assert_same(open_checkpoint(copy)[0], saved("sd15"), "sd15")


def test_a_text_encoder_with_the_names_of_older_transformers(saved: Make, copy: Path) -> None:
    (path,) = (copy / "text_encoder").glob("*.safetensors")
    weights = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in load_file(path).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path, {"format": "pt"})
    assert_same(open_checkpoint(copy)[0], saved("sd15"), "sd15")


@pytest.mark.parametrize("kept", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_tokenizers_in_either_form(saved: Make, copy: Path, kept: list[str]) -> None:
    tokenizer, folder = saved("sd15").pipe.tokenizer, copy / "tokenizer"
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    for path in folder.iterdir():
        if path.name not in (*kept, "tokenizer_config.json", "special_tokens_map.json"):
            path.unlink()
    pipe, _ = open_checkpoint(copy)
    text = "a large red circle"
    assert pipe.tokenizer(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of git-lfs"),
        (b"\n<!DOCTYPE html>\n<html>Sign in", "a web page"),
        (b"PK\x03\x04archive/data.pkl", "a pickle under another name"),
    ],
    ids=["git-lfs", "page", "pickle"],
)
def test_what_a_download_left_behind(
    saved: Make, tmp_path: Path, content: bytes, sentence: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved("sd15").folder, folder)
    (weights,) = (folder / "vae").glob("*.safetensors")
    for path, source in ((weights, folder), (tmp_path / "a.safetensors",) * 2):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=f"{path.name} is {sentence}"):
            find_checkpoint(str(source))

"""Checkpoints whose tensors are not those of their configurations, or are not finite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tessera.errors import BundleError
from tessera.types import Tensors
from tessera_build.cli import app
from tessera_build.complete import check_complete
from tests.fakes.single_file import write_single_file
from tests.samples.checkpoints import Saved

Make = Callable[[str], Saved]
CONV = "model.diffusion_model.input_blocks.0.0"


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_whole_ones_are_accepted(saved: Make, variant: str, tmp_path: Path) -> None:
    made, path = saved(variant), tmp_path / "a.safetensors"
    write_single_file(made.pipe, path)
    check_complete(made.folder)
    check_complete(path, made.folder)
    check_complete(path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_tensor_is_missing(part: str, copy: Path) -> None:
    (file,) = (copy / part).glob("*.safetensors")
    weights = load_file(file)
    lost = next(name for name in weights if name.endswith(("conv_out.bias", "fc1.bias")))
    save_file({n: t for n, t in weights.items() if n != lost}, file, {"format": "pt"})
    with pytest.raises(BundleError, match=rf"{part} lacks 1 tensors, first .*{lost[-8:]}"):
        check_complete(copy)


def test_a_configuration_of_fewer_layers_than_there_are(copy: Path, tmp_path: Path) -> None:
    """Diffusers draws something without the mid block."""
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mid_block_type": None}))
    result = CliRunner().invoke(app, ["bundle", str(copy), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, BundleError)
    assert "tensors that its config.json does not know, first mid_block" in str(result.exception)


def more(weights: Tensors) -> None:
    weights["model.diffusion_model.input_blocks.1.2.weight"] = torch.ones(2)


def fewer(weights: Tensors) -> None:
    del weights[f"{CONV}.bias"]


def not_finite(weights: Tensors) -> None:
    weights[f"{CONV}.weight"] = weights[f"{CONV}.weight"] * torch.nan


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (more, "has 1 tensors of a UNet that .* does not know, first input_blocks.1.2.weight"),
        (fewer, "lacks 1 tensors of a UNet, first input_blocks.0.0.bias"),
        (not_finite, f"has NaN or infinite values in {CONV}.weight"),
    ],
    ids=["more", "fewer", "not finite"],
)
def test_a_single_file(
    saved: Make, change: Callable[[Tensors], None], reason: str, tmp_path: Path
) -> None:
    made, path = saved("sd15"), tmp_path / "a.safetensors"
    write_single_file(made.pipe, path)
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(BundleError, match=reason):
        check_complete(path, made.folder)


def test_older_names_and_float8_are_accepted(copy: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for part in ("vae", "text_encoder"):
        (file,) = (copy / part).glob("*.safetensors")
        weights = {}
        for name, tensor in load_file(file).items():
            for ours, theirs in old.items():
                name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
            name = name if part == "vae" else f"text_model.{name.removeprefix('text_model.')}"
            weights[name] = tensor.to(torch.float8_e5m2)
        save_file(weights, file, {"format": "pt"})
    check_complete(copy)


def test_what_cannot_be_read_is_left_to_others(copy: Path) -> None:
    (copy / "vae" / "config.json").write_text("[]")
    check_complete(copy)

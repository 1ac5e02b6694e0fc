"""Quantised checkpoints are refused by `tessera-build`, and the sentence says by whom they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tessera.errors import BundleError
from tessera_build.cli import app
from tessera_build.quantised import refuse_quantised

WEIGHT = "model.diffusion_model.middle_block.0.in_layers.2.weight"
STEM = WEIGHT.removesuffix(".weight")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({f"{STEM}.scale_weight": torch.ones(1)}, r"\(float8 with scales\), first model"),
        ({"scaled_fp8": torch.ones(2).to(torch.float8_e4m3fn)}, r"\(float8 with scales\)"),
        ({f"{WEIGHT}.absmax": torch.ones(1)}, r"\(bitsandbytes\)"),
        ({f"{WEIGHT}.quant_state.bitsandbytes__nf4": torch.ones(1)}, r"\(bitsandbytes\)"),
        ({f"{STEM}.qweight": torch.ones(1)}, r"\(GPTQ or AWQ\)"),
        ({f"{STEM}.wscales": torch.ones(1)}, r"\(SVDQuant\)"),
        ({f"{STEM}.comfy_quant": torch.ones(1)}, r"\(ComfyUI\)"),
        ({WEIGHT: torch.ones(2, 2).to(torch.int8)}, "in I8, a quantised weight"),
    ],
    ids=["scales", "marker", "absmax", "nf4", "GPTQ", "SVDQuant", "ComfyUI", "codes"],
)
def test_a_file(tensors: dict[str, torch.Tensor], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({WEIGHT: torch.ones(2, 2)} | tensors, path)
    with pytest.raises(BundleError, match=reason + ".*accepted: weights in float32"):
        refuse_quantised(path)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_plain_weights_are_read(kind: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    plain = {WEIGHT: torch.ones(2, 2).to(kind), "positions": torch.arange(3)}
    save_file(plain, path)
    refuse_quantised(path)
    save_file(plain | {f"{STEM}.comfy_quant": torch.ones(1)}, path)
    with pytest.raises(BundleError):
        refuse_quantised(path)


def test_a_folder_by_its_files_and_by_its_configuration(copy: Path, tmp_path: Path) -> None:
    refuse_quantised(copy)
    (file,) = (copy / "unet").glob("*.safetensors")
    weights = load_file(file)
    save_file(weights | {"conv_in.weight.absmax": torch.ones(1)}, file, {"format": "pt"})
    result = CliRunner().invoke(app, ["bundle", str(copy), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, BundleError)
    assert "bitsandbytes" in str(result.exception)
    save_file(weights, file, {"format": "pt"})
    config = copy / "unet" / "config.json"
    content = json.loads(config.read_text())
    content["quantization_config"] = {"quant_method": "bitsandbytes"}
    config.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="says quantised by bitsandbytes"):
        refuse_quantised(copy)

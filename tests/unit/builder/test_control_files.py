"""A single file that is no ControlNet is called by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tessera.errors import BundleError
from tessera_build.control_files import read_file

HINT, BLOCK = "controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"
NAMES = {HINT: (16, 3, 3, 3), BLOCK: (8, 8, 3, 3), "conv_in.weight": (8, 4, 3, 3)}
ORIGINAL = {
    "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
    "control_model.zero_convs.0.0.weight": (8, 8, 1, 1),
}


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("shapes", "union", "lora"),
    [
        (NAMES, False, False),
        (ORIGINAL, False, False),
        ({**NAMES, "task_embedding": (6, 8)}, True, False),
        ({"lora_controlnet": (0,), "input_hint_block.0.weight": (16, 3, 3, 3)}, False, True),
    ],
    ids=["diffusers", "original", "union", "Control-LoRA"],
)
def test_kinds_that_are_accepted(
    shapes: dict[str, tuple[int, ...]], union: bool, lora: bool, tmp_path: Path
) -> None:
    found = read_file("depth", write(tmp_path / "a.safetensors", shapes), 2)
    assert (found.union, found.lora) == (union, lora)
    assert found.shape(HINT) == (16, 3, 3, 3)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"lllite_unet_input_blocks_4_1.depth.0.weight": (2,)}, "is a ControlNet-LLLite"),
        ({"body.0.block1.weight": (2,)}, "is a T2I-Adapter"),
        ({"adapter.body.0.resnets.0.block1.weight": (2,)}, "is a T2I-Adapter"),
        ({"image_proj.proj.weight": (2,)}, "is an IP-Adapter"),
        ({"lora_unet_conv_in.lora_down.weight": (2,)}, "is a LoRA, which --lora takes"),
        ({"double_blocks.0.img_mod.lin.weight": (2,)}, "of a diffusion transformer"),
        ({**NAMES, HINT: (16, 4, 3, 3)}, "takes images of 4 channels; accepted: 3"),
        (
            {**ORIGINAL, "control_model.input_hint_block.0.weight": (16, 4, 3, 3)},
            "takes images of 4 channels; accepted: 3",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_none_is_refused(
    shapes: dict[str, tuple[int, ...]], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=f"ControlNet depth .*{sentence}"):
        read_file("depth", write(tmp_path / "a.safetensors", shapes), 2)

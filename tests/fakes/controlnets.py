"""ControlNets of several kinds at small widths, and the files in which people have them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from safetensors.torch import save_file

from tessera.types import Tensors
from tests.fakes.checkpoint import randomised
from tests.fakes.single_file import original_unet_name

HINTS = {"conditioning_embedding_out_channels": (8, 8, 16, 16)}
MODES = 8


def union(unet: UNet2DConditionModel) -> ControlNetUnionModel:
    """A ControlNet-Union with two layers of its transformer, the same at every call."""
    torch.manual_seed(2)
    width = unet.config.block_out_channels[0]
    fields = inspect.signature(ControlNetUnionModel.__init__).parameters
    config: dict[str, Any] = {f: unet.config[f] for f in fields if f in unet.config}
    config |= HINTS | {
        "num_control_type": MODES,
        "num_trans_channel": width,
        "num_trans_head": 4,
        "num_trans_layer": 2,
        "num_proj_channel": width,
    }
    made: ControlNetUnionModel = randomised(ControlNetUnionModel.from_config(config))
    return made


def original_name(name: str) -> str:
    """What the original release calls a tensor of a ControlNet."""
    if found := re.match(
        r"controlnet_cond_embedding\.(conv_in|conv_out|blocks\.(\d+))\.(\w+)", name
    ):
        place = {"conv_in": 0, "conv_out": 14}.get(found[1], 2 * int(found[2] or 0) + 2)
        return f"input_hint_block.{place}.{found[3]}"
    if found := re.match(r"controlnet_down_blocks\.(\d+)\.(\w+)", name):
        return f"zero_convs.{found[1]}.0.{found[2]}"
    if name.startswith("controlnet_mid_block."):
        return name.replace("controlnet_mid_block", "middle_block_out.0")
    return original_unet_name(name, 2, [])


def write_original(network: ControlNetModel, path: Path, prefix: str = "control_model.") -> Path:
    """A file in the names of the original release, with parts of a checkpoint beside them."""
    state = {f"{prefix}{original_name(n)}": t for n, t in network.state_dict().items()}
    if prefix:
        state["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def write_control_lora(network: ControlNetModel, path: Path, rank: int = 3) -> Tensors:
    """A Control-LoRA for the UNet that a ControlNet was made of, in Stability's form.

    Returns:
        The updates by diffusers' name of the weight that each changes.
    """
    torch.manual_seed(3)
    state, updates = {"lora_controlnet": torch.zeros(0)}, {}
    for name, tensor in network.state_dict().items():
        original = original_name(name)
        if tensor.ndim < 2 or name.startswith("controlnet_"):
            state[original] = tensor.contiguous()
            continue
        stem = original.removesuffix(".weight")
        up = 0.1 * torch.randn(tensor.shape[0], rank, *[1] * (tensor.ndim - 2))
        down = 0.1 * torch.randn(rank, *tensor.shape[1:])
        state |= {f"{stem}.up": up, f"{stem}.down": down}
        updates[name] = (up.flatten(1) @ down.flatten(1)).reshape(tensor.shape)
    save_file(state, path)
    return updates

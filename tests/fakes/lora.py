"""Random LoRA files for a pipeline, in the layouts that there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from tessera.types import Tensors
from tests.fakes.single_file import original_unet_name

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
EVERYTHING = ("",)
_SGM = {"add_embedding_linear_1": "label_emb_0_0", "add_embedding_linear_2": "label_emb_0_2"}
"""What kohya's scripts call by its name in the original SDXL code."""
_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


@dataclass(frozen=True)
class Pair:
    """(down, up) of one module."""

    down: torch.Tensor
    up: torch.Tensor


Pairs = dict[tuple[str, str], Pair]
"""By part and module."""


def random_pairs(
    pipe: DiffusionPipeline,
    *,
    rank: int = 4,
    seed: int = 0,
    size: float = 0.3,
    modules: tuple[str, ...] = ATTENTION,
    parts: tuple[str, ...] = ("unet", "text_encoder", "text_encoder_2"),
) -> Pairs:
    """Updates whose size is `size` times that of the weights they change; `modules` are suffixes of
    names.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for part in parts:
        for name, module in getattr(pipe, part, nn.Module()).named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(modules):
                pairs[part, name] = _pair(module.weight, rank, size, generator)
    return pairs


def _pair(weight: torch.Tensor, rank: int, size: float, generator: torch.Generator) -> Pair:
    out, *inner = weight.shape
    down = torch.randn(rank, *inner, generator=generator) / weight[0].numel() ** 0.5
    up = torch.randn(out, rank, *[1] * (len(inner) - 1), generator=generator) / rank**0.5
    return Pair(down, up * size * weight.detach().std() * weight[0].numel() ** 0.5)


def kohya(pairs: Pairs, alpha: float = 2.0) -> Tensors:
    """As kohya's scripts write them."""
    tensors = {}
    for (part, module), pair in pairs.items():
        bare = _with_prefix(part, module).replace(".", "_")
        name = f"{_KOHYA[part]}_{_SGM.get(bare, bare)}"
        tensors[f"{name}.lora_down.weight"] = pair.down
        tensors[f"{name}.lora_up.weight"] = pair.up
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def kohya_sgm(pairs: Pairs, unet: UNet2DConditionModel) -> Tensors:
    """As kohya's scripts write them for XL: blocks as the original release names them."""
    attends = ["CrossAttn" in kind for kind in unet.config.up_block_types]
    tensors: Tensors = {}
    for (part, module), pair in pairs.items():
        written = kohya({(part, module): pair})
        if part == "unet":
            name = original_unet_name(f"{module}.weight", unet.config.layers_per_block, attends)
            stem = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
            written = {f"{stem}.{key.partition('.')[2]}": t for key, t in written.items()}
        tensors |= written
    return tensors


def peft(pairs: Pairs) -> Tensors:
    """As diffusers' `save_lora_weights` writes what PEFT gives it."""
    tensors = {}
    for (part, module), pair in pairs.items():
        tensors[f"{part}.{module}.lora_A.weight"] = pair.down
        tensors[f"{part}.{module}.lora_B.weight"] = pair.up
    return tensors


def diffusers_new(pairs: Pairs) -> Tensors:
    """As diffusers' `convert_state_dict_to_diffusers` writes them."""
    tensors = {}
    for (part, module), pair in pairs.items():
        infix = "lora" if part == "unet" else "lora_linear_layer"
        tensors[f"{part}.{_with_prefix(part, module)}.{infix}.down.weight"] = pair.down
        tensors[f"{part}.{_with_prefix(part, module)}.{infix}.up.weight"] = pair.up
    return tensors


def diffusers_old(pairs: Pairs) -> Tensors:
    """As diffusers wrote attention processors before it used PEFT."""
    tensors = {}
    for (part, module), pair in pairs.items():
        parent, leaf = _with_prefix(part, module).removesuffix(".0").rsplit(".", 1)
        leaf = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}.get(
            leaf, leaf
        )
        infix = ".processor" if part == "unet" else ""
        tensors[f"{part}.{parent}{infix}.{leaf}_lora.down.weight"] = pair.down
        tensors[f"{part}.{parent}{infix}.{leaf}_lora.up.weight"] = pair.up
    return tensors


LAYOUTS: Mapping[str, Callable[[Pairs], Tensors]] = {
    "kohya": kohya,
    "diffusers": diffusers_new,
    "diffusers-old": diffusers_old,
    "peft": peft,
}


def save(path: Path, tensors: Tensors, config: Mapping[str, object] | None = None) -> Path:
    """Write a file; `config` goes into its header as diffusers does it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}
    if config is not None:
        metadata["lora_adapter_metadata"] = json.dumps(config)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    return path


def _with_prefix(part: str, module: str) -> str:
    """Files name the text encoder's modules as older transformers did."""
    bare = part == "unet" or module.startswith(("text_model.", "text_projection"))
    return module if bare else f"text_model.{module}"

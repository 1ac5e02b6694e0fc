"""Writes a pipeline as a single file in the layout of the original releases: CompVis' names for
Stable Diffusion 1.x, Stability's for XL.

The mapping is the inverse of the one that diffusers reads such files with, written from the
original networks' structure (openaimodel.py, model.py of the VAE, OpenCLIP's transformer).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from tessera.types import Tensors

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def write_single_file(pipe: DiffusionPipeline, path: Path) -> None:
    """Write UNet, VAE and text encoders into one safetensors file."""
    config = pipe.unet.config
    attends = ["CrossAttn" in kind for kind in config.up_block_types]
    held = {}
    for name, tensor in pipe.unet.state_dict().items():
        new = original_unet_name(name, config.layers_per_block, attends)
        held[f"model.diffusion_model.{new}"] = tensor
    levels = len(pipe.vae.config.block_out_channels)
    for name, tensor in pipe.vae.state_dict().items():
        new = _vae_name(name, levels)
        point = "mid.attn_1" in new and tensor.ndim == 2  # 1x1 convolutions there
        held[f"first_stage_model.{new}"] = tensor[..., None, None] if point else tensor
    first = "conditioner.embedders.0" if hasattr(pipe, "text_encoder_2") else "cond_stage_model"
    for name, tensor in pipe.text_encoder.state_dict().items():
        held[f"{first}.transformer.text_model.{name}"] = tensor
    if hasattr(pipe, "text_encoder_2"):
        second = _open_clip(pipe.text_encoder_2.state_dict())
        held |= {f"conditioner.embedders.1.model.{n}": t for n, t in second.items()}
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, path)


def original_unet_name(name: str, layers: int, attends: Sequence[bool]) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, index, rest = match.groups()
        middle = "1" if kind == "attentions" else ("0", "2")[int(index)]
        return f"middle_block.{middle}.{_inner(kind, rest)}"
    match = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert match, name
    side, block, kind, index, rest = match.groups()
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (int(block) + 1)}.0.{rest.replace('conv', 'op')}"
        place = (layers + 1) * int(block) + int(index) + 1
        return f"input_blocks.{place}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    place = (layers + 1) * int(block)
    if kind == "upsamplers":
        return f"output_blocks.{place + layers}.{1 + attends[int(block)]}.{rest}"
    return f"output_blocks.{place + int(index)}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    part, _, end = rest.rpartition(".")
    return f"{_RESNET[part]}.{end}"


def _vae_name(name: str, levels: int) -> str:
    def level(match: re.Match[str]) -> str:
        side, block = match.groups()
        return f"down.{block}." if side == "down" else f"up.{levels - 1 - int(block)}."

    name = re.sub(r"(down|up)_blocks\.(\d)\.", level, name)
    name = name.replace("resnets.", "block.").replace("conv_norm_out", "norm_out")
    name = re.sub(r"(down|up)samplers\.0", r"\1sample", name).replace(
        "conv_shortcut", "nin_shortcut"
    )
    name = name.replace("mid_block.block.0", "mid.block_1").replace(
        "mid_block.block.1", "mid.block_2"
    )
    if "mid_block.attentions.0." in name:
        for ours, theirs in _VAE_ATTENTION.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
    return name


def _open_clip(state: Mapping[str, torch.Tensor]) -> Tensors:
    """OpenCLIP keeps query, key and value in one matrix, and projections transposed."""
    held: Tensors = {}
    stacked: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        name = name.removeprefix("text_model.")
        if match := re.match(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", name):
            layer, part, end = match.groups()
            key = f"transformer.resblocks.{layer}.attn.in_proj_{end}"
            stacked.setdefault(key, {})[part] = tensor
            continue
        for ours, theirs in _OPEN_CLIP.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        name = name.replace("encoder.layers", "transformer.resblocks")
        name = name.replace("embeddings.token_embedding", "token_embedding")
        name = name.replace("embeddings.position_embedding.weight", "positional_embedding")
        name = name.replace("final_layer_norm", "ln_final")
        if name == "text_projection.weight":
            name, tensor = "text_projection", tensor.T
        held[name] = tensor
    return held | {key: torch.cat([parts[p] for p in "qkv"]) for key, parts in stacked.items()}

"""Random inputs for the modules of graphs, for tracing, comparing and measuring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tessera.manifest import Latents
from tessera.networks.lowrank import LowRank
from tessera.networks.modules import GraphModule, UNetEncoder
from tessera.networks.slots import FACTORS, widths_of
from tessera.networks.sparse_unet import SparseUNet
from tessera.types import Tensors
from tessera.variants import TOKENS
from tessera_build.sparse import sparse_inputs

RANK = 3
"""Default rank of low-rank inputs."""


def example_inputs(
    module: GraphModule,
    latents: Latents,
    *,
    rows: int,
    height: int,
    width: int,
    rank: int = RANK,
    tokens: int = TOKENS,
) -> Tensors:
    """Random inputs by name, in the module's order, on the CPU in float32.

    Args:
        module: module of any graph except the UNet's decoder half. For that use `decoder_inputs`,
            and `factor_inputs` if it has low-rank inputs.
        latents: the bundle's latent space.
        rows: size of the batch.
        height: height in latents.
        width: width in latents.
        rank: rank of low-rank inputs.
        tokens: length of the text that a UNet or ControlNet takes.
    """
    size = {"rows": rows, "height": height, "width": width, "tokens": tokens}
    if isinstance(module, LowRank):
        of_half = example_inputs(module.half, latents, **size)
        return {**of_half, **factor_inputs(module, rows, rank)}
    if isinstance(module, SparseUNet):
        encoder = UNetEncoder(module.source)
        live = example_inputs(encoder, latents, **size)
        return sparse_inputs(module, live)
    config: Any = module.source.config
    first_width = config.block_out_channels[0] if "hint" in module.inputs else 0
    shapes = {
        "sample": (getattr(config, "in_channels", 0), height, width),
        "latents": (latents.channels, height, width),
        "image": (3, height * latents.pixels, width * latents.pixels),
        "hint": (first_width, height, width),
        "mode": (getattr(config, "num_control_type", 0),),
        "mode_emb": (4 * first_width,),
        "timestep_cond": (getattr(config, "time_cond_proj_dim", 0) or 0,),
        "encoder_hidden_states": (tokens, getattr(config, "cross_attention_dim", 0)),
        "text_embeds": (_pooled_width(config),),
    }
    inputs = {name: torch.randn(rows, *shapes[name]) for name in module.inputs if name in shapes}
    if "input_ids" in module.inputs:
        ids = torch.randint(0, config.vocab_size, (rows, TOKENS))
        ids[:, -1] = config.eos_token_id  # the projection reads the embedding at the first of these
        ids[:, 1] = -1  # a vector takes the place of its embedding
        inputs["input_ids"] = ids
        inputs["vectors"] = torch.randn(rows, TOKENS, config.hidden_size)
        inputs["clip_skip"] = torch.arange(rows) % config.num_hidden_layers
    if "timestep" in module.inputs:
        inputs["timestep"] = torch.linspace(1, 900, rows)
    if "time_ids" in module.inputs:
        sizes = [8.0 * n for n in (height, width, 0, 0, height, width)]
        inputs["time_ids"] = torch.tensor([sizes] * rows)
    return {name: inputs[name] for name in module.inputs}


def decoder_inputs(inputs: Mapping[str, torch.Tensor], encoded: Tensors) -> Tensors:
    """Inputs of the UNet's decoder half, from the encoder half's inputs and outputs."""
    mid, emb, *skips = encoded
    text = inputs["encoder_hidden_states"]
    return {
        mid: encoded[mid],
        emb: encoded[emb],
        "encoder_hidden_states": text,
        **{name: encoded[name] for name in skips},
    }


def factor_inputs(module: GraphModule, rows: int, rank: int = RANK) -> Tensors:
    """Random low-rank inputs of a half of the UNet, if it takes any.

    The updates are about a tenth as large as the weights.
    """
    if not isinstance(module, LowRank):
        return {}
    widths = widths_of(module.slots)
    return {name: 0.05 * torch.randn(rows, rank, widths[name]) for name in FACTORS}


def run(module: GraphModule, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """Run a module; returns its outputs by name."""
    with torch.no_grad():
        outputs = module(*inputs.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return dict(zip(module.outputs, outputs, strict=True))


def is_picture(name: str) -> bool:
    """Whether an input or output has height and width, at axes 2 and 3."""
    return name in ("sample", "latents", "image", "mid", "hint") or name.startswith("skip_")


def _pooled_width(config: Any) -> int:
    if not getattr(config, "addition_embed_type", None):
        return 0
    return int(config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)

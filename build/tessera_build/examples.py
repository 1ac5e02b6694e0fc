"""Random inputs for the modules of graphs, to trace, compare and measure them with."""

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
from tessera_build.sparse import sparse_inputs

TOKENS = 77
"""The window of every text encoder that Stable Diffusion has had."""

RANK = 3
"""Of low-rank inputs."""


def example_inputs(
    module: GraphModule,
    latents: Latents,
    *,
    rows: int,
    height: int,
    width: int,
    rank: int = RANK,
) -> Tensors:
    """Inputs by name, in the module's order, on the CPU in float32.

    Args:
        module: of any graph but the UNet's decoder half, which takes `decoder_inputs`, and
            `factor_inputs` if it has low-rank inputs.
        latents: of the bundle.
        rows: the batch.
        height: in latents.
        width: in latents.
        rank: of low-rank inputs.
    """
    if isinstance(module, LowRank):
        size = {"rows": rows, "height": height, "width": width}
        own = example_inputs(module.half, latents, **size)
        return {**own, **factor_inputs(module, rows, rank)}
    if isinstance(module, SparseUNet):
        encoder = UNetEncoder(module.source)
        live = example_inputs(encoder, latents, rows=rows, height=height, width=width)
        return sparse_inputs(module, live)
    config: Any = module.source.config
    hint_width = config.block_out_channels[0] if "hint" in module.inputs else 0
    shapes = {
        "sample": (latents.channels, height, width),
        "latents": (latents.channels, height, width),
        "image": (3, height * latents.pixels, width * latents.pixels),
        "hint": (hint_width, height, width),
        "encoder_hidden_states": (TOKENS, getattr(config, "cross_attention_dim", 0)),
        "text_embeds": (_pooled_width(config),),
    }
    made = {name: torch.randn(rows, *shapes[name]) for name in module.inputs if name in shapes}
    if "input_ids" in module.inputs:
        ids = torch.randint(0, config.vocab_size, (rows, TOKENS))
        ids[:, -1] = config.eos_token_id  # the projection reads the embedding at the first of these
        made["input_ids"] = ids
    if "timestep" in module.inputs:
        made["timestep"] = torch.linspace(1, 900, rows)
    if "time_ids" in module.inputs:
        sizes = [8.0 * n for n in (height, width, 0, 0, height, width)]
        made["time_ids"] = torch.tensor([sizes] * rows)
    return {name: made[name] for name in module.inputs}


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
    """The low-rank inputs of a half of the UNet that has such, else none; updates of a tenth of the
    weights' own size.
    """
    if not isinstance(module, LowRank):
        return {}
    widths = widths_of(module.slots)
    return {name: 0.05 * torch.randn(rows, rank, widths[name]) for name in FACTORS}


def run(module: GraphModule, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """The module's outputs by name."""
    with torch.no_grad():
        outputs = module(*inputs.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return dict(zip(module.outputs, outputs, strict=True))


def is_picture(name: str) -> bool:
    """Whether an input or output has height and width, as axes 2 and 3."""
    return name in ("sample", "latents", "image", "mid", "hint") or name.startswith("skip_")


def _pooled_width(config: Any) -> int:
    if not getattr(config, "addition_embed_type", None):
        return 0
    return int(config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)

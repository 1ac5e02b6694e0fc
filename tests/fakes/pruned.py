"""UNets of other structures than those of the releases, with random weights at small widths: pruned
ones, without a mid block or with other numbers of layers on the way down and up, and a distilled
one that takes the guidance scale.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from tests.fakes.checkpoint import SAMPLE_SIZE, randomised

_XL: dict[str, Any] = {
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 8),
    "use_linear_projection": True,
    "cross_attention_dim": 64,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 88,
}
PRUNED: dict[str, dict[str, Any]] = {
    "small-sd": {
        "block_out_channels": (32, 64, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "mid_block_type": None,
        "layers_per_block": 1,
        "cross_attention_dim": 48,
    },
    "vega": _XL
    | {"mid_block_type": None, "transformer_layers_per_block": (1, 1, 2), "layers_per_block": 2},
    "ssd-1b": _XL
    | {
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, (2, 1), (1, 3)),
        "reverse_transformer_layers_per_block": ((2, 1, 3), (2, 1, 1), 1),
    },
    "levels": _XL
    | {
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "layers_per_block": (1, 2, 1),
        "transformer_layers_per_block": (1, 2, (1, 1)),
        "reverse_transformer_layers_per_block": (1, 2, 1),
    },
    "lcm": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 48,
        "time_cond_proj_dim": 24,
    },
}
"""Configurations in the form of Segmind's small-sd, Vega and SSD-1B, one with another number of
layers at each level, and one as LCM-distilled checkpoints have it.
"""


@cache
def pruned(name: str) -> UNet2DConditionModel:
    """The UNet of a name; the same object at every call."""
    torch.manual_seed(0)
    made: UNet2DConditionModel = randomised(
        UNet2DConditionModel(sample_size=SAMPLE_SIZE, **PRUNED[name])
    )
    return made

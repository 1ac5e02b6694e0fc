"""The configurations of the published checkpoints, as far as they decide names and sizes, and their
published numbers of parameters.
"""

from __future__ import annotations

from typing import Any

_FOUR_LEVELS: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}


def _text(width: int, layers: int, heads: int, kind: str = "CLIPTextModel") -> dict[str, Any]:
    return {
        "architectures": [kind],
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 77,
    }


CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": _FOUR_LEVELS | {"cross_attention_dim": 768, "attention_head_dim": 8},
        "text_encoder": _text(768, 12, 12),
        "vae": _VAE,
    },
    "sd21": {
        "unet": _FOUR_LEVELS
        | {
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        "text_encoder": _text(1024, 23, 16),
        "vae": _VAE,
    },
    "sdxl": {
        "unet": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "text_encoder": _text(768, 12, 12),
        "text_encoder_2": _text(1280, 32, 20, "CLIPTextModelWithProjection"),
        "vae": _VAE,
    },
}
PARAMETERS = {
    ("sd15", "unet"): 859_520_964,
    ("sd21", "unet"): 865_910_724,
    ("sdxl", "unet"): 2_567_463_684,
    ("sd15", "text_encoder"): 123_060_480,
    ("sd21", "text_encoder"): 340_387_840,
    ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840,
    ("sd15", "vae"): 83_653_863,
    ("sd21", "vae"): 83_653_863,
    ("sdxl", "vae"): 83_653_863,
}

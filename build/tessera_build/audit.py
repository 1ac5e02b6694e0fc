"""Every field of a checkpoint's configurations that could change a picture: applied, or refused.

A field that this table does not know would change nothing here and something in diffusers, without
a word. So the table has all fields of diffusers' classes, and a test compares it with them: one
that a later version adds fails the test until somebody has decided about it.

- `MODULE`: the network's module is built with it, and the graphs are exported from that module.
- `ELSEWHERE`: Tessera's own code applies it; the comment says where.
- `NOTHING`: it does not change what the network computes.
- `Only`: the graphs compute what these values mean, and others are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.errors import BundleError, brief, listing
from tessera.variants import UNET_CHANNELS

MODULE = "module"
ELSEWHERE = "elsewhere"
NOTHING = "nothing"


@dataclass(frozen=True)
class Only:
    """The values that are accepted. Of a list, each element has to be one of them."""

    values: tuple[object, ...]


Rule = str | Only
_NONE = Only((None,))
_NO = Only((None, False))

_CONDITIONED: dict[str, Rule] = {
    "act_fn": Only(("silu", "swish")),
    "addition_embed_type": Only((None, "text_time")),
    "addition_embed_type_num_heads": NOTHING,  # of embeddings of type `text`
    "addition_time_embed_dim": MODULE,
    "attention_head_dim": MODULE,
    "block_out_channels": MODULE,
    "class_embed_type": _NONE,
    "cross_attention_dim": Only((int,)),
    "down_block_types": Only(("CrossAttnDownBlock2D", "DownBlock2D")),
    "downsample_padding": MODULE,
    "encoder_hid_dim": _NONE,
    "encoder_hid_dim_type": _NONE,
    "flip_sin_to_cos": MODULE,
    "freq_shift": MODULE,
    "in_channels": Only((4,)),  # also of inpainting UNets' ControlNets
    "layers_per_block": Only((int,)),
    "mid_block_scale_factor": Only((1,)),
    "mid_block_type": Only((None, "UNetMidBlock2DCrossAttn", "UNetMidBlock2D")),
    "norm_eps": MODULE,
    "norm_num_groups": Only((int,)),
    "num_attention_heads": MODULE,
    "num_class_embeds": _NONE,
    "only_cross_attention": _NO,
    "projection_class_embeddings_input_dim": MODULE,
    "resnet_time_scale_shift": Only(("default",)),
    "transformer_layers_per_block": MODULE,
    "upcast_attention": NOTHING,  # the precision of attention is the engine's
    "use_linear_projection": MODULE,
}
"""What a UNet and a ControlNet have in common."""

FIELDS: dict[str, dict[str, Rule]] = {
    "UNet2DConditionModel": _CONDITIONED
    | {
        "attention_type": Only(("default",)),
        "center_input_sample": _NO,
        "class_embeddings_concat": _NO,
        "conv_in_kernel": Only((3,)),
        "conv_out_kernel": Only((3,)),
        "cross_attention_norm": _NONE,
        "dropout": NOTHING,  # of training
        "dual_cross_attention": _NO,
        "in_channels": Only(UNET_CHANNELS),
        "mid_block_only_cross_attention": _NO,
        "out_channels": Only((4,)),
        "resnet_out_scale_factor": Only((1,)),
        "resnet_skip_time_act": _NO,
        "reverse_transformer_layers_per_block": MODULE,
        "sample_size": ELSEWHERE,  # the default size of pictures
        "time_cond_proj_dim": ELSEWHERE,  # denoise.unet.embed_guidance
        "time_embedding_act_fn": _NONE,
        "time_embedding_dim": MODULE,
        "time_embedding_type": Only(("positional",)),
        "timestep_post_act": MODULE,
        "up_block_types": Only(("CrossAttnUpBlock2D", "UpBlock2D")),
    },
    "ControlNetModel": _CONDITIONED
    | {
        "conditioning_channels": Only((3,)),
        "conditioning_embedding_out_channels": MODULE,
        "controlnet_conditioning_channel_order": ELSEWHERE,  # networks.modules.ControlNetHint
        "global_pool_conditions": ELSEWHERE,  # networks.controlnets.ControlNet
        "mid_block_type": Only(("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")),
    },
    "ControlNetUnionModel": {f: r for f, r in _CONDITIONED.items() if f != "mid_block_type"}
    | {
        "conditioning_channels": Only((3,)),
        "conditioning_embedding_out_channels": MODULE,
        "controlnet_conditioning_channel_order": Only(("rgb",)),
        "global_pool_conditions": ELSEWHERE,  # networks.controlnets.ControlNet
        "num_control_type": ELSEWHERE,  # manifest.ControlKind
        "num_proj_channel": MODULE,
        "num_trans_channel": MODULE,
        "num_trans_head": NOTHING,  # its attention is over equal rows: networks.controlnets
        "num_trans_layer": MODULE,
    },
    "AutoencoderKL": {
        "act_fn": MODULE,
        "block_out_channels": MODULE,
        "down_block_types": MODULE,
        "force_upcast": ELSEWHERE,  # engines.registry
        "in_channels": Only((3,)),
        "latent_channels": Only((4,)),
        "latents_mean": ELSEWHERE,  # manifest.Latents, as in diffusers for XL only
        "latents_std": ELSEWHERE,
        "layers_per_block": MODULE,
        "mid_block_add_attention": MODULE,
        "norm_num_groups": MODULE,
        "out_channels": Only((3,)),
        "sample_size": NOTHING,  # of tiles
        "scaling_factor": ELSEWHERE,  # manifest.Latents
        "shift_factor": Only((None, 0)),
        "up_block_types": MODULE,
        "use_post_quant_conv": MODULE,
        "use_quant_conv": MODULE,
    },
    "AsymmetricAutoencoderKL": {
        "act_fn": MODULE,
        "down_block_out_channels": MODULE,
        "down_block_types": MODULE,
        "in_channels": Only((3,)),
        "latent_channels": Only((4,)),
        "layers_per_down_block": MODULE,
        "layers_per_up_block": MODULE,
        "norm_num_groups": MODULE,
        "out_channels": Only((3,)),
        "sample_size": NOTHING,  # of tiles
        "scaling_factor": ELSEWHERE,  # manifest.Latents
        "up_block_out_channels": MODULE,
        "up_block_types": MODULE,
    },
    "AutoencoderTiny": {
        "act_fn": MODULE,
        "decoder_block_out_channels": MODULE,
        "encoder_block_out_channels": MODULE,
        "force_upcast": ELSEWHERE,  # engines.registry
        "in_channels": Only((3,)),
        "latent_channels": Only((4,)),
        "latent_magnitude": NOTHING,  # of latents as bytes, which diffusers' pipelines do not use
        "latent_shift": NOTHING,
        "num_decoder_blocks": MODULE,
        "num_encoder_blocks": MODULE,
        "out_channels": Only((3,)),
        "scaling_factor": ELSEWHERE,  # manifest.Latents
        "shift_factor": Only((None, 0)),
        "upsample_fn": MODULE,
        "upsampling_scaling_factor": Only((2,)),
    },
    "CLIPTextConfig": {
        "architectures": ELSEWHERE,  # networks.graphs: with a projection or without
        "attention_dropout": NOTHING,  # of training
        "bos_token_id": ELSEWHERE,  # the tokenizer's file says it
        "chunk_size_feed_forward": NOTHING,
        "dtype": ELSEWHERE,  # the bundle's precision
        "eos_token_id": MODULE,
        "hidden_act": MODULE,
        "hidden_size": MODULE,
        "id2label": NOTHING,
        "initializer_factor": NOTHING,
        "initializer_range": NOTHING,
        "intermediate_size": MODULE,
        "is_encoder_decoder": NOTHING,
        "label2id": NOTHING,
        "layer_norm_eps": MODULE,
        "max_position_embeddings": MODULE,
        "num_attention_heads": MODULE,
        "num_hidden_layers": MODULE,
        "output_hidden_states": NOTHING,
        "pad_token_id": ELSEWHERE,  # the tokenizer's file says it
        "problem_type": NOTHING,
        "projection_dim": MODULE,
        "return_dict": NOTHING,
        "transformers_version": NOTHING,
        "vocab_size": MODULE,
    },
}
"""By class and field. Samplers are diffusers' own classes, made of the whole configuration."""


def check_config(what: str, kind: str, config: Mapping[str, Any]) -> None:
    """Refuse a network whose graphs would not compute what its configuration says.

    Args:
        what: names the network in the error: `UNet`, `VAE` ...
        kind: its class, one of `FIELDS`.
        config: its configuration.

    Raises:
        BundleError: the class, or a field's value, is not supported. The message names it.
    """
    if kind not in FIELDS:
        accepted = listing(k for k in FIELDS if k != "CLIPTextConfig")
        raise BundleError(f"the {what} is of class {kind}; accepted: {accepted}")
    for field, rule in FIELDS[kind].items():
        if isinstance(rule, Only) and field in config:
            value = config[field]
            elements = value if isinstance(value, list | tuple) and value else [value]
            if not all(_accepted(element, rule) for element in elements):
                raise BundleError(
                    f"the {what} has {field} {brief(value)}; accepted: {_written(rule)}"
                )


def _accepted(value: object, rule: Only) -> bool:
    if int in rule.values:
        return isinstance(value, int) and not isinstance(value, bool)
    return value in rule.values


def _written(rule: Only) -> str:
    if int in rule.values:
        return "a number for each block"
    return " or ".join("nothing" if value is None else str(value) for value in rule.values)

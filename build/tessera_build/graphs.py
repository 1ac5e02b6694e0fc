"""Which graphs a checkpoint becomes, with the example inputs and names each is exported with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import nn

from tessera import modules
from tessera.variants import Variant
from tessera_build.export import Signature

_ANY = torch.export.Dim.AUTO
_ROWS = {0: _ANY}
_IMAGE = {0: _ANY, 2: _ANY, 3: _ANY}
_BATCH, _SIDE = 2, 16


@dataclass(frozen=True)
class GraphSpec:
    """A graph to export: its name in the bundle, the module, what goes in and out."""

    name: str
    module: nn.Module
    signature: Signature


def graphs_of(pipe: DiffusionPipeline, variant: Variant) -> list[GraphSpec]:
    """Every graph of a pipeline, ready to export one after the other."""
    return [
        *(_text_encoder(pipe, name, variant) for name in variant.text_encoders),
        *_unet_halves(pipe, variant),
        *_vae(pipe, variant),
    ]


def _spec(
    graph: str, module: modules.GraphModule, example: Iterable[torch.Tensor], dynamic: Any
) -> GraphSpec:
    signature = Signature(tuple(example), module.inputs, module.outputs, dynamic)
    return GraphSpec(graph, module, signature)


def _text_encoder(pipe: DiffusionPipeline, name: str, variant: Variant) -> GraphSpec:
    encoder = getattr(pipe, name)
    config = encoder.config
    ids = torch.randint(0, config.vocab_size, (_BATCH, config.max_position_embeddings))
    ids[:, -1] = config.eos_token_id
    return _spec(name, modules.wrap(name, encoder, variant), [ids], (_ROWS,))


def _unet_halves(pipe: DiffusionPipeline, variant: Variant) -> tuple[GraphSpec, GraphSpec]:
    encoder = modules.wrap("unet_encoder", pipe.unet, variant)
    decoder = modules.wrap("unet_decoder", pipe.unet, variant)
    inputs = _unet_inputs(pipe.unet, pipe.tokenizer.model_max_length)
    with torch.no_grad():
        mid, emb, *skips = encoder(**inputs)
    shapes = tuple(_IMAGE if name == "sample" else _ROWS for name in inputs)
    second = (mid, emb, inputs["encoder_hidden_states"], *skips)
    return (
        _spec("unet_encoder", encoder, inputs.values(), shapes),
        _spec("unet_decoder", decoder, second, (_IMAGE, _ROWS, _ROWS, (_IMAGE,) * len(skips))),
    )


def _unet_inputs(unet: UNet2DConditionModel, tokens: int) -> dict[str, torch.Tensor]:
    """Example inputs of the encoder half, by name."""
    config = unet.config
    inputs = {
        "sample": torch.randn(_BATCH, config.in_channels, 2 * _SIDE, _SIDE),
        "timestep": torch.tensor([3.0, 500.0]),
        "encoder_hidden_states": torch.randn(_BATCH, tokens, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["text_embeds"] = torch.randn(_BATCH, pooled)
        inputs["time_ids"] = torch.tensor([[128.0, 64.0, 0.0, 0.0, 128.0, 64.0]] * _BATCH)
    return inputs


def _vae(pipe: DiffusionPipeline, variant: Variant) -> tuple[GraphSpec, GraphSpec]:
    config = pipe.vae.config
    pixels = 2 ** (len(config.block_out_channels) - 1)
    image = torch.randn(_BATCH, 3, 2 * _SIDE * pixels, _SIDE * pixels)
    latents = torch.randn(_BATCH, config.latent_channels, 2 * _SIDE, _SIDE)
    encoder = modules.wrap("vae_encoder", pipe.vae, variant)
    decoder = modules.wrap("vae_decoder", pipe.vae, variant)
    return (
        _spec("vae_encoder", encoder, [image], (_IMAGE,)),
        _spec("vae_decoder", decoder, [latents], (_IMAGE,)),
    )

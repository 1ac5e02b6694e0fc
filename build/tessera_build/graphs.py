"""Which graphs a checkpoint becomes, with the example inputs and names each is exported with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import nn

from tessera.variants import Variant
from tessera_build import modules
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
    texts = [_text_encoder(pipe, name, variant) for name in variant.text_encoders]
    encoder, decoder = _unet_halves(pipe.unet, pipe.tokenizer.model_max_length)
    return [*texts, encoder, decoder, *_vae(pipe)]


def _text_encoder(pipe: DiffusionPipeline, name: str, variant: Variant) -> GraphSpec:
    encoder = getattr(pipe, name)
    config = encoder.config
    ids = torch.randint(0, config.vocab_size, (_BATCH, config.max_position_embeddings))
    ids[:, -1] = config.eos_token_id
    if not variant.pooled:
        signature = Signature((ids,), ("input_ids",), ("last_hidden_state",), (_ROWS,))
        return GraphSpec(name, modules.TextEncoder(encoder).eval(), signature)
    module = modules.PenultimateTextEncoder(encoder).eval()
    outputs = ("penultimate_hidden_state", module.behind)
    return GraphSpec(name, module, Signature((ids,), ("input_ids",), outputs, (_ROWS,)))


def _unet_halves(unet: UNet2DConditionModel, tokens: int) -> tuple[GraphSpec, GraphSpec]:
    encoder, decoder = modules.UNetEncoder(unet).eval(), modules.UNetDecoder(unet).eval()
    skips = tuple(f"skip_{i}" for i in range(modules.skip_count(unet)))
    inputs = _unet_inputs(unet, tokens)
    with torch.no_grad():
        mid, emb, *states = encoder(**inputs)
    first = Signature(
        tuple(inputs.values()),
        tuple(inputs),
        ("mid", "emb", *skips),
        tuple(_IMAGE if name == "sample" else _ROWS for name in inputs),
    )
    second = Signature(
        (mid, emb, inputs["encoder_hidden_states"], *states),
        ("mid", "emb", "encoder_hidden_states", *skips),
        ("prediction",),
        (_IMAGE, _ROWS, _ROWS, tuple(_IMAGE for _ in skips)),
    )
    return GraphSpec("unet_encoder", encoder, first), GraphSpec("unet_decoder", decoder, second)


def _unet_inputs(unet: UNet2DConditionModel, tokens: int) -> dict[str, torch.Tensor]:
    """Example inputs of the encoder half, by name."""
    config = unet.config
    device, dtype = unet.device, unet.dtype
    inputs = {
        "sample": torch.randn(_BATCH, config.in_channels, 2 * _SIDE, _SIDE),
        "timestep": torch.tensor([3.0, 500.0]),
        "encoder_hidden_states": torch.randn(_BATCH, tokens, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["text_embeds"] = torch.randn(_BATCH, pooled)
        inputs["time_ids"] = torch.tensor([[128.0, 64.0, 0.0, 0.0, 128.0, 64.0]] * _BATCH)
    keep = ("timestep", "time_ids")
    return {k: v.to(device, v.dtype if k in keep else dtype) for k, v in inputs.items()}


def _vae(pipe: DiffusionPipeline) -> tuple[GraphSpec, GraphSpec]:
    channels, pixels = (
        pipe.vae.config.latent_channels,
        2 ** (len(pipe.vae.config.block_out_channels) - 1),
    )
    image = torch.randn(_BATCH, 3, 2 * _SIDE * pixels, _SIDE * pixels)
    latents = torch.randn(_BATCH, channels, 2 * _SIDE, _SIDE)
    encode = Signature((image,), ("image",), ("mean", "std"), (_IMAGE,))
    decode = Signature((latents,), ("latents",), ("image",), (_IMAGE,))
    return (
        GraphSpec("vae_encoder", modules.VaeEncoder(pipe.vae).eval(), encode),
        GraphSpec("vae_decoder", modules.VaeDecoder(pipe.vae).eval(), decode),
    )

"""Which graphs a checkpoint becomes, with the example inputs and names each is exported with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

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


def graphs_of(pipe: StableDiffusionPipeline) -> list[GraphSpec]:
    """Every graph of a pipeline, ready to export one after the other."""
    encoder, decoder = _unet_halves(pipe.unet, pipe.tokenizer.model_max_length)
    return [_text_encoder(pipe), encoder, decoder, _vae_decoder(pipe)]


def _text_encoder(pipe: StableDiffusionPipeline) -> GraphSpec:
    ids = torch.randint(
        0, pipe.text_encoder.config.vocab_size, (_BATCH, pipe.tokenizer.model_max_length)
    )
    signature = Signature((ids,), ("input_ids",), ("last_hidden_state",), (_ROWS,))
    return GraphSpec("text_encoder", modules.TextEncoder(pipe.text_encoder).eval(), signature)


def _unet_halves(unet: UNet2DConditionModel, tokens: int) -> tuple[GraphSpec, GraphSpec]:
    sample = torch.randn(_BATCH, unet.config.in_channels, 2 * _SIDE, _SIDE)
    timestep = torch.tensor([3.0, 500.0])
    text = torch.randn(_BATCH, tokens, unet.config.cross_attention_dim)
    encoder, decoder = modules.UNetEncoder(unet).eval(), modules.UNetDecoder(unet).eval()
    skips = tuple(f"skip_{i}" for i in range(modules.skip_count(unet)))
    with torch.no_grad():
        mid, emb, *states = encoder(sample, timestep, text)
    first = Signature(
        (sample, timestep, text),
        ("sample", "timestep", "encoder_hidden_states"),
        ("mid", "emb", *skips),
        (_IMAGE, _ROWS, _ROWS),
    )
    second = Signature(
        (mid, emb, text, *states),
        ("mid", "emb", "encoder_hidden_states", *skips),
        ("prediction",),
        (_IMAGE, _ROWS, _ROWS, tuple(_IMAGE for _ in skips)),
    )
    return GraphSpec("unet_encoder", encoder, first), GraphSpec("unet_decoder", decoder, second)


def _vae_decoder(pipe: StableDiffusionPipeline) -> GraphSpec:
    latents = torch.randn(_BATCH, pipe.vae.config.latent_channels, 2 * _SIDE, _SIDE)
    signature = Signature((latents,), ("latents",), ("image",), (_IMAGE,))
    return GraphSpec("vae_decoder", modules.VaeDecoder(pipe.vae).eval(), signature)

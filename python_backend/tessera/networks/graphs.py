"""Maps a bundle's graphs to their modules and to the parts of a checkpoint. Knows no engines."""

from __future__ import annotations

from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tessera.manifest import CONTROLNET, HINT, LOWRANK
from tessera.networks.lowrank import LowRank
from tessera.networks.modules import (
    ControlNet,
    ControlNetHint,
    GraphModule,
    PenultimateTextEncoder,
    TextEncoder,
    UNetDecoder,
    UNetEncoder,
    VaeDecoder,
    VaeEncoder,
)
from tessera.networks.sparse_unet import SparseUNet, TextProjections
from tessera.variants import Variant

_KINDS: dict[str, type[GraphModule]] = {
    "unet_encoder": UNetEncoder,
    "unet_decoder": UNetDecoder,
    "unet_sparse": SparseUNet,
    "unet_text": TextProjections,
    "vae_encoder": VaeEncoder,
    "vae_decoder": VaeDecoder,
}


def wrap(graph: str, network: nn.Module, variant: Variant) -> GraphModule:
    """The module of a graph, which wraps the network that the graph is a part of.

    Args:
        graph: name of the graph in the bundle.
        network: the network, see `new_network`.
        variant: the bundle's variant.
    """
    if graph.endswith(LOWRANK):
        return LowRank(wrap(graph.removesuffix(LOWRANK), network, variant)).eval()
    if graph.startswith("text_encoder"):
        kind: type[GraphModule] = PenultimateTextEncoder if variant.pooled else TextEncoder
    elif graph.startswith(CONTROLNET):
        kind = ControlNetHint if graph.endswith(HINT) else ControlNet
    else:
        kind = _KINDS[graph]
    return kind(network).eval()


def new_network(part: str, config: dict[str, Any]) -> nn.Module:
    """A network without weights: its parameters are on the meta device.

    Args:
        part: see `manifest.network_of`.
        config: content of the checkpoint's `config.json` for that part.
    """
    with init_empty_weights(include_buffers=False):
        if part == "unet":
            return UNet2DConditionModel.from_config(config)
        if part == "vae":
            return AutoencoderKL.from_config(config)
        if part.startswith(CONTROLNET):
            return ControlNetModel.from_config(config)
        known = {c.__name__: c for c in (CLIPTextModel, CLIPTextModelWithProjection)}
        return known[config["architectures"][0]](CLIPTextConfig.from_dict(config))

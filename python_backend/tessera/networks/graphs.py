"""Maps a bundle's graphs to their modules and to the parts of a checkpoint. Knows no engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import init_empty_weights
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    ControlNetUnionModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tessera.manifest import CONTROLNET, HINT, LOWRANK
from tessera.networks.controlnets import ControlNet, ControlNetHint, UnionHint, is_union
from tessera.networks.lowrank import LowRank
from tessera.networks.modules import (
    GraphModule,
    UNetDecoder,
    UNetEncoder,
    VaeDecoder,
    VaeEncoder,
)
from tessera.networks.sparse_unet import SparseUNet, TextProjections
from tessera.networks.text_modules import PenultimateTextEncoder, TextEncoder
from tessera.variants import Variant

_KINDS: dict[str, type[GraphModule]] = {
    "unet_encoder": UNetEncoder,
    "unet_decoder": UNetDecoder,
    "unet_sparse": SparseUNet,
    "unet_text": TextProjections,
    "vae_encoder": VaeEncoder,
    "vae_decoder": VaeDecoder,
}
_OTHER_VAES = (AsymmetricAutoencoderKL, AutoencoderTiny)


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
        of_hint = UnionHint if is_union(network) else ControlNetHint
        kind = of_hint if graph.endswith(HINT) else ControlNet
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
            return _kind_of(config, AutoencoderKL, *_OTHER_VAES).from_config(config)
        if part.startswith(CONTROLNET):
            return _kind_of(config, ControlNetModel, ControlNetUnionModel).from_config(config)
        known = {c.__name__: c for c in (CLIPTextModel, CLIPTextModelWithProjection)}
        return known[config["architectures"][0]](CLIPTextConfig.from_dict(config))


def _kind_of(config: Mapping[str, Any], *kinds: Any) -> Any:
    """The class that a configuration names; the first if it names none."""
    named = {kind.__name__: kind for kind in kinds}
    return named[config.get("_class_name", kinds[0].__name__)]

"""The networks that engines run: wrappers of diffusers and transformers modules that define each
graph's inputs and outputs. `networks.controlnets` has those of ControlNets.

The builder exports these modules, and the torch engine runs them. A wrapper *adopts* the children
of the network it wraps, so that its parameters have the checkpoint's names without a prefix. The
UNet is cut after the mid block, where residuals of ControlNets are added.

Knows no engines, bundles or requests.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    ControlNetUnionModel,
    UNet2DConditionModel,
)
from torch import nn

from tessera.networks.outline import UNET_HALVES

Conditioned: TypeAlias = UNet2DConditionModel | ControlNetModel | ControlNetUnionModel
Vae: TypeAlias = AutoencoderKL | AsymmetricAutoencoderKL | AutoencoderTiny


class GraphModule(nn.Module):
    """A module that adopts the children of another module.

    The other module is available as `source` but not registered as a child.

    Attributes:
        inputs, outputs: names of the tensors that `forward` takes and returns, in order.

    Args:
        source: the network.
        parts: names of the children to adopt; all by default.
        tree: the module whose children to adopt; `source` by default.
    """

    source: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(
        self,
        source: nn.Module,
        parts: Iterable[str] | None = None,
        *,
        tree: nn.Module | None = None,
    ) -> None:
        super().__init__()
        names = None if parts is None else set(parts)
        for name, child in (source if tree is None else tree).named_children():
            if names is None or name in names:
                self.add_module(name, child)
        object.__setattr__(self, "source", source)


class UNetEncoder(GraphModule):
    """conv_in, down blocks, mid block: (`sample`, `timestep`, `encoder_hidden_states`) -> (`mid`,
    `emb`, `skip_i`...).

    If the UNet takes them, `added_inputs` are inputs too. `mid` of a UNet without a mid block is
    its last skip.
    """

    source: UNet2DConditionModel

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__(unet, UNET_HALVES["unet_encoder"])
        self.inputs = (*BASIC_INPUTS, *added_inputs(unet))
        self.outputs = ("mid", "emb", *_skips(unet))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        first: torch.Tensor | None = None,
        second: torch.Tensor | None = None,
        third: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """See the class. The last three are the added inputs, as far as there are any."""
        unet = self.source
        added = dict(zip(self.inputs[len(BASIC_INPUTS) :], (first, second, third), strict=False))
        emb = embed_conditions(unet, sample, timestep, added)
        mid, skips = go_down(unet, unet.conv_in(sample), emb, encoder_hidden_states)
        return (mid, emb, *skips)


class UNetDecoder(GraphModule):
    """Up blocks and conv_out: (`mid`, `emb`, `encoder_hidden_states`, `skip_i`...) -> `prediction`.

    Every upsampler gets the size of the skip that its output is joined with. So sizes need not be
    multiples of 2^levels.
    """

    source: UNet2DConditionModel

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__(unet, UNET_HALVES["unet_decoder"])
        self.inputs = ("mid", "emb", "encoder_hidden_states", *_skips(unet))
        self.outputs = ("prediction",)

    def forward(
        self,
        mid: torch.Tensor,
        emb: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *skips: torch.Tensor,
    ) -> torch.Tensor:
        """See the class."""
        unet, hidden = self.source, mid
        for block in unet.up_blocks:
            count = len(block.resnets)
            used, skips = skips[-count:], skips[:-count]
            hidden = block(
                hidden_states=hidden,
                temb=emb,
                res_hidden_states_tuple=used,
                upsample_size=skips[-1].shape[2:] if skips else None,
                **_text_for(block, encoder_hidden_states),
            )
        out: torch.Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return out


class VaeEncoder(GraphModule):
    """`image` (n, 3, H, W) in -1..1 -> `mean`, `std` (n, c, h, w) of the unscaled latents.

    A tiny VAE knows no distribution: its latents are the mean, and the deviation is 0.
    """

    source: Vae
    inputs = ("image",)
    outputs = ("mean", "std")

    def __init__(self, vae: Vae) -> None:
        super().__init__(vae, ("encoder", "quant_conv"))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        encoded = self.source.encode(image)
        if isinstance(self.source, AutoencoderTiny):
            return encoded.latents, torch.zeros_like(encoded.latents)
        return encoded.latent_dist.mean, encoded.latent_dist.std


class VaeDecoder(GraphModule):
    """`latents` (n, c, h, w), unscaled -> `image` (n, 3, H, W) around -1..1.

    An asymmetric VAE decodes without the image and the mask that its decoder could take.
    """

    source: Vae
    inputs = ("latents",)
    outputs = ("image",)

    def __init__(self, vae: Vae) -> None:
        super().__init__(vae, ("post_quant_conv", "decoder"))
        if isinstance(vae, AsymmetricAutoencoderKL):
            self.decoder = _without(vae.decoder, "condition_encoder")

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """See the class."""
        image: torch.Tensor = self.source.decode(latents, return_dict=False)[0]
        return image


BASIC_INPUTS = ("sample", "timestep", "encoder_hidden_states")
"""Inputs of every UNet and ControlNet."""


def added_inputs(network: Conditioned) -> tuple[str, ...]:
    """Further inputs that the checkpoint's config determines: `text_embeds` (n, width) and
    `time_ids` (n, 6), and `timestep_cond` (n, width), the embedding of the guidance scale.
    """
    config = network.config
    added = ("text_embeds", "time_ids") if config.addition_embed_type else ()
    return (*added, "timestep_cond") if config.get("time_cond_proj_dim") else added


def embed_conditions(
    network: Conditioned,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    added: Mapping[str, torch.Tensor | None],
) -> torch.Tensor:
    """The embedding (n, width) of the timestep and of those of `added_inputs` that `added` has
    (Podell et al. 2023, section 2.2; Meng et al. 2023). Only the precision of `sample` is used.
    """
    projected = network.time_proj(timestep).to(sample.dtype)
    emb: torch.Tensor = network.time_embedding(projected, added.get("timestep_cond"))
    text, sizes = added.get("text_embeds"), added.get("time_ids")
    if text is None or sizes is None:
        return emb
    embedded = network.add_time_proj(sizes.flatten()).reshape(text.shape[0], -1)
    return emb + network.add_embedding(torch.cat([text, embedded], -1).to(emb.dtype))


def keeps_type(name: str, tensor: torch.Tensor) -> bool:
    """Whether an input keeps its type when an engine computes in half precision.

    These are indices, and numbers that half precision cannot represent.
    """
    exact = name in ("timestep", "time_ids", "norms") or name.startswith("share_")
    return exact or not tensor.is_floating_point()


def go_down(
    network: Conditioned, hidden: torch.Tensor, emb: torch.Tensor, text: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Down blocks and mid block: (mid, skips). Without a mid block, mid is a copy of the last skip,
    since residuals are added to each in place.
    """
    skips: tuple[torch.Tensor, ...] = (hidden,)
    for block in network.down_blocks:
        hidden, states = block(hidden_states=hidden, temb=emb, **_text_for(block, text))
        skips += states
    block = network.mid_block
    if block is None:
        return hidden.clone(), skips
    return block(hidden, emb, **_text_for(block, text)), skips


def _skips(unet: UNet2DConditionModel) -> tuple[str, ...]:
    count = sum(len(block.resnets) for block in unet.up_blocks)
    return tuple(f"skip_{i}" for i in range(count))


def _text_for(block: nn.Module, text: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


def _without(module: nn.Module, child: str) -> Any:
    """A module that shares all children but one."""
    twin = copy.copy(module)
    kept = {name: other for name, other in module._modules.items() if name != child}
    object.__setattr__(twin, "_modules", kept)
    return twin

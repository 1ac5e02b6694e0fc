"""The networks that engines run: wrappers of diffusers and transformers modules that define each
graph's inputs and outputs.

The builder exports these modules, and the torch engine runs them. A wrapper *adopts* the children
of the network it wraps, so that its parameters have the checkpoint's names without a prefix. The
UNet is cut after the mid block, where residuals of ControlNets are added. A ControlNet is cut after
the hint, the embedding of its control image, which is the same in every step.

Knows no engines, bundles or requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tessera.networks.outline import UNET_HALVES

_CONTROL_PARTS = ("controlnet_down_blocks", "controlnet_mid_block")


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


class TextEncoder(GraphModule):
    """`input_ids` (n, tokens) -> `last_hidden_state` (n, tokens, width)."""

    source: CLIPTextModel
    inputs = ("input_ids",)
    outputs = ("last_hidden_state",)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        hidden: torch.Tensor = self.source(input_ids)[0]
        return hidden


class PenultimateTextEncoder(GraphModule):
    """`input_ids` -> `penultimate_hidden_state` (n, tokens, width) and a second output.

    The second output is `text_embeds` (n, width) for an encoder with a projection. Otherwise it is
    `last_hidden_state`, which nothing reads. It keeps the last layer's weights in the graph, since
    LoRAs refer to them.
    """

    source: CLIPTextModel | CLIPTextModelWithProjection
    inputs = ("input_ids",)

    def __init__(self, source: nn.Module) -> None:
        super().__init__(source)
        projects = isinstance(source, CLIPTextModelWithProjection)
        second = "text_embeds" if projects else "last_hidden_state"
        self.outputs = ("penultimate_hidden_state", second)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        output = self.source(input_ids, output_hidden_states=True)
        return output.hidden_states[-2], output[self.outputs[1]]


class UNetEncoder(GraphModule):
    """conv_in, down blocks, mid block: (`sample`, `timestep`, `encoder_hidden_states`) -> (`mid`,
    `emb`, `skip_i`...).

    If the UNet takes them, `text_embeds` (n, width) and `time_ids` (n, 6) are inputs too.
    """

    source: UNet2DConditionModel

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__(unet, UNET_HALVES["unet_encoder"])
        self.inputs = _conditioned(unet)
        self.outputs = ("mid", "emb", *_skips(unet))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """See the class."""
        unet = self.source
        added = {} if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        emb = embed_conditions(unet, sample, timestep, added)
        mid, skips = _go_down(unet, unet.conv_in(sample), emb, encoder_hidden_states)
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


class ControlNet(GraphModule):
    """(`sample`, `timestep`, `encoder_hidden_states`, `hint`) -> (`residual_0` ... `residual_k`,
    `residual_mid`), unscaled, in the order of the encoder half's skips and its mid.

    `text_embeds` and `time_ids` as in the encoder half. `hint` is the output of `ControlNetHint`.
    """

    source: ControlNetModel

    def __init__(self, network: ControlNetModel) -> None:
        super().__init__(network, (*UNET_HALVES["unet_encoder"], *_CONTROL_PARTS))
        self.inputs = (*_conditioned(network), "hint")
        count = len(network.controlnet_down_blocks)
        self.outputs = (*(f"residual_{i}" for i in range(count)), "residual_mid")

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *rest: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """See the class."""
        network, (*added, hint) = self.source, rest
        names = ("text_embeds", "time_ids")
        emb = embed_conditions(network, sample, timestep, dict(zip(names, added, strict=False)))
        mid, skips = _go_down(network, network.conv_in(sample) + hint, emb, encoder_hidden_states)
        pairs = zip(network.controlnet_down_blocks, skips, strict=True)
        return (*(conv(skip) for conv, skip in pairs), network.controlnet_mid_block(mid))


class ControlNetHint(GraphModule):
    """`image` (n, 3, H, W) in 0..1 -> `hint` (n, c, h, w). Runs once per request."""

    source: ControlNetModel
    inputs = ("image",)
    outputs = ("hint",)

    def __init__(self, network: ControlNetModel) -> None:
        super().__init__(network, ("controlnet_cond_embedding",))
        self._flipped = network.config.controlnet_conditioning_channel_order == "bgr"

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """See the class."""
        ordered = image.flip(1) if self._flipped else image
        hint: torch.Tensor = self.source.controlnet_cond_embedding(ordered)
        return hint


class VaeEncoder(GraphModule):
    """`image` (n, 3, H, W) in -1..1 -> `mean`, `std` (n, c, h, w) of the unscaled latents."""

    source: AutoencoderKL
    inputs = ("image",)
    outputs = ("mean", "std")

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__(vae, ("encoder", "quant_conv"))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        posterior = self.source.encode(image).latent_dist
        return posterior.mean, posterior.std


class VaeDecoder(GraphModule):
    """`latents` (n, c, h, w), unscaled -> `image` (n, 3, H, W) around -1..1."""

    source: AutoencoderKL
    inputs = ("latents",)
    outputs = ("image",)

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__(vae, ("post_quant_conv", "decoder"))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """See the class."""
        image: torch.Tensor = self.source.decode(latents, return_dict=False)[0]
        return image


def embed_conditions(
    network: UNet2DConditionModel | ControlNetModel,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    added: Mapping[str, torch.Tensor | None],
) -> torch.Tensor:
    """The embedding (n, width) of the timestep and of `text_embeds` and `time_ids`, if `added` has
    them (Podell et al. 2023, section 2.2). Only the precision of `sample` is used.
    """
    emb: torch.Tensor = network.time_embedding(network.time_proj(timestep).to(sample.dtype))
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


def _conditioned(network: UNet2DConditionModel | ControlNetModel) -> tuple[str, ...]:
    """Input names of a UNet or ControlNet that the checkpoint's config determines."""
    added = ("text_embeds", "time_ids") if network.config.addition_embed_type else ()
    return ("sample", "timestep", "encoder_hidden_states", *added)


def _go_down(
    network: UNet2DConditionModel | ControlNetModel,
    hidden: torch.Tensor,
    emb: torch.Tensor,
    text: torch.Tensor,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Down blocks and mid block: (mid, skips)."""
    skips: tuple[torch.Tensor, ...] = (hidden,)
    for block in network.down_blocks:
        hidden, states = block(hidden_states=hidden, temb=emb, **_text_for(block, text))
        skips += states
    block = network.mid_block
    return block(hidden, emb, **_text_for(block, text)), skips


def _skips(unet: UNet2DConditionModel) -> tuple[str, ...]:
    count = sum(len(block.resnets) for block in unet.up_blocks)
    return tuple(f"skip_{i}" for i in range(count))


def _text_for(block: nn.Module, text: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}

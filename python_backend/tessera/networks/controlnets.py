"""The graphs of ControlNets: see `networks.modules`.

A ControlNet is cut after the hint, the embedding of its control image, which is the same in every
step. For a Union, whose one network knows several kinds of control images, the hint depends on the
kind too. Knows no engines, bundles or requests.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel
from torch import nn
from torch.nn import functional

from tessera.networks.modules import (
    BASIC_INPUTS,
    GraphModule,
    added_inputs,
    embed_conditions,
    go_down,
)
from tessera.networks.outline import UNET_HALVES

_PARTS = ("controlnet_down_blocks", "controlnet_mid_block")
_UNION_PARTS = (
    "controlnet_cond_embedding",
    "transformer_layes",  # diffusers' own name
    "spatial_ch_projs",
    "control_type_proj",
    "control_add_embedding",
)


class ControlNet(GraphModule):
    """(`sample`, `timestep`, `encoder_hidden_states`, `hint`) -> (`residual_0` ... `residual_k`,
    `residual_mid`), unscaled, in the order of the encoder half's skips and its mid.

    Added inputs as in the encoder half. `hint`, and `mode_emb` of a Union, are what the graph of
    the hint returns. With `global_pool_conditions` each residual is the same everywhere.
    """

    source: ControlNetModel | ControlNetUnionModel

    def __init__(self, network: ControlNetModel | ControlNetUnionModel) -> None:
        super().__init__(network, (*UNET_HALVES["unet_encoder"], *_PARTS))
        hints = UnionHint.outputs if is_union(network) else ControlNetHint.outputs
        self.inputs = (*BASIC_INPUTS, *added_inputs(network), *hints)
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
        network = self.source
        added = dict(zip(self.inputs[len(BASIC_INPUTS) :], rest, strict=True))
        emb = embed_conditions(network, sample, timestep, added)
        if "mode_emb" in added:
            emb = emb + added["mode_emb"]
        hidden = network.conv_in(sample) + added["hint"]
        mid, skips = go_down(network, hidden, emb, encoder_hidden_states)
        pairs = zip(network.controlnet_down_blocks, skips, strict=True)
        residuals = (*(conv(skip) for conv, skip in pairs), network.controlnet_mid_block(mid))
        if network.config.global_pool_conditions:
            return tuple(r.mean((2, 3), keepdim=True).expand_as(r) for r in residuals)
        return residuals


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


class UnionHint(GraphModule):
    """`image` (n, 3, H, W) in 0..1 and `mode` (n, modes), one of which is 1 -> `hint` (n, c, h, w)
    and `mode_emb` (n, width), which is added to the embedding of the timestep.

    Diffusers' transformer attends over the rows of a batch, not over the images of a row (its
    attention takes the batch second). The rows of one request have the same image and mode, and
    attention over equal rows is the value of each. So the steps' latents, which diffusers gives the
    transformer too, change nothing, and all of it can be computed once per request.
    """

    source: ControlNetUnionModel
    inputs = ("image", "mode")
    outputs = ("hint", "mode_emb")

    def __init__(self, network: ControlNetUnionModel) -> None:
        super().__init__(network, _UNION_PARTS)
        self.task_embedding = network.task_embedding

    def forward(self, image: torch.Tensor, mode: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        network = self.source
        hint = network.controlnet_cond_embedding(image)
        rows = hint.mean((2, 3)) + mode @ self.task_embedding
        for layer in network.transformer_layes:
            rows = _transformed(layer, rows)
        shift = network.spatial_ch_projs(rows)[:, :, None, None]
        projected = network.control_type_proj(mode.flatten()).reshape(mode.shape[0], -1)
        return hint + shift, network.control_add_embedding(projected.to(hint.dtype))


def is_union(network: nn.Module) -> bool:
    """Whether one ControlNet knows several kinds of control images."""
    return isinstance(network, ControlNetUnionModel)


def _transformed(layer: Any, rows: torch.Tensor) -> torch.Tensor:
    """A layer of a Union's transformer, with attention over equal rows."""
    attention, width = layer.attn, rows.shape[1]
    weight, bias = attention.in_proj_weight[-width:], attention.in_proj_bias[-width:]
    rows = rows + attention.out_proj(functional.linear(layer.ln_1(rows), weight, bias))
    return rows + layer.mlp(layer.ln_2(rows))

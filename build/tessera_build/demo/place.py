"""Gives the demo model's UNet a sense of place while it is trained.

A Stable Diffusion UNet has no position embedding: where a latent is, it can only work out from the
zero padding at the picture's border, layer by layer. Near pure noise there is nothing else to go
by, so a network of this size learns grounds and colours long before it puts a shape where the
prompt wants it. Linear readouts of the inner features that have to name their own coordinates
bring that out within 200 steps. They belong to the training, not to the checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

_FREQUENCIES = (1, 2, 3, 4)
"""Half waves per picture, for either axis."""


class PlaceReadouts(nn.Module):
    """One linear readout for each transformer of the UNet and for its mid block.

    Watches the UNet's forward passes; `loss` speaks of the latest one.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        watched = [m for block in blocks for m in getattr(block, "attentions", [])]
        self.heads = nn.ModuleList(
            nn.Conv2d(m.in_channels, 2 * len(_FREQUENCIES), 1) for m in watched
        )
        self._features: dict[int, torch.Tensor] = {}
        for number, module in enumerate(watched):
            module.register_forward_hook(self._keep(number))

    def loss(self) -> torch.Tensor:
        """Mean squared error of the coordinates that the features name; about 1 when they know
        nothing.
        """
        errors = [
            (head(self._features[i]).float() - _coordinates(self._features[i])).square().mean()
            for i, head in enumerate(self.heads)
        ]
        return torch.stack(errors).mean()

    def _keep(self, number: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._features[number] = output[0]

        return hook


def _coordinates(features: torch.Tensor) -> torch.Tensor:
    """Cosines (8, h, w) of x and y, of unit variance, for features (n, c, h, w)."""
    height, width = features.shape[-2:]
    rows = [_waves(width, features.device)[:, None, :].expand(-1, height, -1)]
    rows += [_waves(height, features.device)[:, :, None].expand(-1, -1, width)]
    return torch.cat(rows)


def _waves(count: int, device: torch.device) -> torch.Tensor:
    places = (torch.arange(count, device=device) + 0.5) / count
    return torch.stack([math.sqrt(2) * torch.cos(math.pi * k * places) for k in _FREQUENCIES])

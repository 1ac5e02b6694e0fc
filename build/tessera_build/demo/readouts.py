"""Makes the demo model's UNet know where it is and what is to be drawn there, while it is trained.

A Stable Diffusion UNet has no position embedding: where a latent is, it can only work out from the
zero padding at the picture's border, layer by layer. Near pure noise there is nothing else to go
by, so a network of this size learns grounds and colours long before it puts a shape where the
prompt wants it, and outlines later still. Linear readouts of the inner features that have to name
their own coordinates, and what the scene has there, bring that out within a few hundred steps. They
belong to the training, not to the checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional

from tessera_build.demo.scenes import COLOURS, SHAPES, SIZES, Scene

_FREQUENCIES = (1, 2, 3, 4)
"""Half waves per picture, for either axis."""

_FIELDS = {"shape": SHAPES, "colour": COLOURS, "size": tuple(SIZES)}
_CLASSES = [1 + len(words) for words in _FIELDS.values()]
_REACH = 1.2
"""How far around its centre an item counts as being there, in units of its size."""


class Readouts(nn.Module):
    """Linear readouts for each transformer of the UNet.

    Watches the UNet's forward passes; `loss` speaks of the latest one.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        watched = [m for block in blocks for m in getattr(block, "attentions", [])]
        self.where = nn.ModuleList(
            nn.Conv2d(m.in_channels, 2 * len(_FREQUENCIES), 1) for m in watched
        )
        self.what = nn.ModuleList(nn.Conv2d(m.in_channels, sum(_CLASSES), 1) for m in watched)
        self._features: dict[int, torch.Tensor] = {}
        for number, module in enumerate(watched):
            module.register_forward_hook(self._keep(number))

    def loss(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of place: the mean squared error of the coordinates that the features name, about 1 when
        they know nothing. Of things: the mean cross entropy of shape, colour and size, half of it
        at items.

        Args:
            labels: (n, 3, 32, 32), see `label_maps`.
        """
        places, things = [], []
        for number, features in self._features.items():
            places.append(_place_error(self.where[number](features).float()))
            things.append(_thing_error(self.what[number](features).float(), labels))
        return torch.stack(places).mean(), torch.stack(things).mean()

    def _keep(self, number: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._features[number] = output[0]

        return hook


def label_maps(scenes: list[Scene]) -> torch.Tensor:
    """What is where: class numbers (n, 3, 32, 32) of shape, colour and size, 0 for nothing."""
    centres = (torch.arange(32) + 0.5) * 4  # of the latents, in pixels
    labels = torch.zeros(len(scenes), len(_FIELDS), 32, 32, dtype=torch.long)
    for number, scene in enumerate(scenes):
        for item in scene.items:
            x, y = item.centre
            distance = torch.hypot(centres[None, :] - x, centres[:, None] - y)
            there = distance < _REACH * SIZES[item.size]
            for field, (name, words) in enumerate(_FIELDS.items()):
                labels[number, field][there] = 1 + words.index(getattr(item, name))
    return labels


def _place_error(named: torch.Tensor) -> torch.Tensor:
    height, width = named.shape[-2:]
    rows = [_waves(width, named.device)[:, None, :].expand(-1, height, -1)]
    rows += [_waves(height, named.device)[:, :, None].expand(-1, -1, width)]
    return (named - torch.cat(rows)).square().mean()


def _waves(count: int, device: torch.device) -> torch.Tensor:
    """Cosines of unit variance: (frequencies, count)."""
    places = (torch.arange(count, device=device) + 0.5) / count
    return torch.stack([math.sqrt(2) * torch.cos(math.pi * k * places) for k in _FREQUENCIES])


def _thing_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    side = logits.shape[-1]
    # The largest class number in a cell: an item that covers a part of it is there.
    coarse = functional.max_pool2d(labels.float(), labels.shape[-1] // side).long()
    errors = [
        functional.cross_entropy(part, coarse[:, field], reduction="none")
        for field, part in enumerate(logits.split(_CLASSES, dim=1))
    ]
    error, there = torch.stack(errors).mean(0), coarse[:, 0] > 0
    return (error[there].mean() + error[~there].mean()) / 2

"""UNet halves in which every row of the batch has its own low-rank updates.

Each linear layer and convolution computes y = W x + B (A x) (Hu et al. 2021, eq. 3), with a
different A and B in each row. So requests with different LoRAs share a call and no weight is
replaced. The factors of all layers are stacked: one pair of tensors for layers of one point
(linear, 1x1), one pair for larger convolutions. A row without an update has zeros.

A convolution's A is a convolution too, with a kernel for each row. It is computed as one product
for all kernel points. The results are then shifted and added up. For rank r this takes 9 r numbers
per pixel; the usual method, unfolding the input, takes 9 c.

Knows torch modules, nothing of adapters or requests.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from tessera.networks.modules import GraphModule
from tessera.networks.slots import FACTORS, Slot, slots_of
from tessera.networks.walk import weights_of

Layer: TypeAlias = nn.Linear | nn.Conv2d


class LowRank(GraphModule):
    """A half of the UNet that takes `FACTORS` after the half's inputs.

    It adds forward hooks to the half's layers. The hooks do nothing in calls of the half itself.

    Args:
        half: `UNetEncoder` or `UNetDecoder`.
    """

    half: GraphModule

    def __init__(self, half: GraphModule) -> None:
        super().__init__(half.source, tree=half)
        object.__setattr__(self, "half", half)  # not registered: its layers already are
        self.inputs = (*half.inputs, *FACTORS)
        self.outputs = half.outputs
        self.slots = slots_of(weights_of(half))
        self._factors: dict[str, torch.Tensor] = {}
        for name, slot in self.slots.items():
            self.get_submodule(name).register_forward_hook(partial(self._add, slot))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """See the class."""
        count = len(self.half.inputs)
        self._factors = dict(zip(FACTORS, inputs[count:], strict=True))
        try:
            out: torch.Tensor | tuple[torch.Tensor, ...] = self.half(*inputs[:count])
        finally:
            self._factors = {}
        return out

    def _add(
        self, slot: Slot, layer: Layer, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        if not self._factors:
            return None
        down, up = (self._factors[stack] for stack in slot.stacks)
        down, up = down[..., slot.down], up[..., slot.up]
        if isinstance(layer, nn.Linear):
            return output + _of_linear(inputs[0], down, up)
        return output + _of_convolution(layer, inputs[0], down, up)


def _of_linear(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Update (n, ..., out) of a linear layer: `x` (n, ..., in), `down` (n, r, in), `up` (n, r,
    out).
    """
    rows = x if x.ndim == 3 else x.unsqueeze(1)
    update = rows @ down.transpose(1, 2) @ up
    return update if x.ndim == 3 else update.squeeze(1)


def _of_convolution(
    layer: nn.Conv2d, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    """Update (n, out, h', w') of a convolution: `x` (n, c, h, w), `down` (n, r, points * c), `up`
    (n, r, out).
    """
    rows, channels, height, width = x.shape
    by_point = down.reshape(rows, -1, channels)  # (n, r points, c)
    inner = by_point @ x.flatten(2)  # (n, r points, h w)
    points = _points(layer)
    if points != (1, 1):
        shifts = _shifts(points).to(x)
        each = inner.reshape(-1, shifts.shape[1], height, width)  # (n r, points, h, w)
        summed = F.conv2d(each, shifts, None, layer.stride, layer.padding)  # (n r, 1, h', w')
        height, width = summed.shape[2:]
        inner = summed.reshape(rows, -1, height * width)
    update = up.transpose(1, 2) @ inner
    return update.reshape(rows, -1, height, width)


@cache
def _shifts(points: tuple[int, int]) -> torch.Tensor:
    """A kernel (1, points, height, width) that shifts each point's products to their pixel and adds
    them up.
    """
    count = points[0] * points[1]
    return torch.eye(count).reshape(1, count, *points)


def _points(layer: Layer) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return 1, 1
    height, width = layer.kernel_size
    return height, width

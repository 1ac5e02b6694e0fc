"""Where the low-rank factors of a UNet half's layers lie in their stacks: see `networks.lowrank`.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FACTORS = ("lora_down", "lora_up", "lora_conv_down", "lora_conv_up")
"""Inputs beside the half's own: (n, rank, sum of inner widths) and (n, rank, sum of outer widths),
for layers of one point and for convolutions of several. All rows have the same rank, at least 1,
the two pairs perhaps different ones.
"""
LINEAR, CONV = FACTORS[:2], FACTORS[2:]


@dataclass(frozen=True)
class Slot:
    """Where a layer's factors lie in their stacks.

    Attributes:
        stacks: names of the two, `LINEAR` or `CONV`.
        down: columns of A: points x channels, channels fastest.
        up: columns of B's transpose.
        points: of the kernel: (height, width).
    """

    stacks: tuple[str, ...]
    down: slice
    up: slice
    points: tuple[int, int] = (1, 1)


def slots_of(weights: Mapping[str, Sequence[int]]) -> dict[str, Slot]:
    """The slots of a half's linear layers and convolutions, by the layer's name; `weights` are the
    shapes of their weights in the order of its modules.
    """
    slots, ends = {}, dict.fromkeys(FACTORS, 0)
    for name, (outer, *inner) in weights.items():
        points = (inner[1], inner[2]) if len(inner) == 3 else (1, 1)
        stacks = LINEAR if points == (1, 1) else CONV
        starts = [ends[stack] for stack in stacks]
        ends[stacks[0]] += math.prod(inner)
        ends[stacks[1]] += outer
        slots[name.removesuffix(".weight")] = Slot(
            stacks,
            slice(starts[0], starts[0] + math.prod(inner)),
            slice(starts[1], starts[1] + outer),
            points,
        )
    return slots


def widths_of(slots: Mapping[str, Slot]) -> dict[str, int]:
    """Last dimension of each of `FACTORS`; a stack that no layer is in has one unused column."""
    widths = dict.fromkeys(FACTORS, 1)
    for slot in slots.values():
        down, up = slot.stacks
        widths[down] = max(widths[down], slot.down.stop)
        widths[up] = max(widths[up], slot.up.stop)
    return widths

"""The canvas of an edit: which latents may change, and the values of the others.

Knows tensors, nothing of requests, engines or Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TEMPLATE_SEED = 0
"""Seed of the noise that re-noises a template. It is the same for every request, so that a
template's recorded activations fit all of them. A request that uses this seed itself has the same
noise inside and outside its mask."""


@dataclass(frozen=True)
class Canvas:
    """A template in latents.

    Attributes:
        clean: the template's latents (1, c, h, w).
        noise: the noise added to them (1, c, h, w).
        active: which latents the edit may change (1, 1, h, w), boolean.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    active: torch.Tensor

    def compose(self, inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        """Latents (1, c, h, w): active ones from `inside`, inactive ones from `outside`."""
        return torch.where(self.active, inside, outside)


def canvas_of(clean: torch.Tensor, active: torch.Tensor) -> Canvas:
    """Make a canvas from a template's latents (c, h, w) and a mask of latents (h, w)."""
    generator = torch.Generator("cpu").manual_seed(TEMPLATE_SEED)
    noise = torch.randn((1, *clean.shape), generator=generator)
    return Canvas(clean[None], noise, active[None, None].bool())

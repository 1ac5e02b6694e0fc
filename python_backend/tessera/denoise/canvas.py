"""The canvas of an edit: which latents may change, and the values of the others.

Knows tensors, nothing of requests, engines or Triton.
"""

from __future__ import annotations

import dataclasses
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
        strengths: how strongly, (1, 1, h, w) of FP32, 0 to 255; `None` of a hard mask.
        held: whether the others are put back to the template's after every step. Without it the
            network draws all of them, as an inpainting UNet can.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    active: torch.Tensor
    strengths: torch.Tensor | None = None
    held: bool = True

    def compose(self, inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        """Latents (1, c, h, w): active ones from `inside`, inactive ones from `outside`."""
        return torch.where(self.active, inside, outside)

    def begun(self, noise: torch.Tensor) -> Canvas:
        """The canvas of a request with that noise (1, c, h, w). Latents of a soft mask that are
        held at their template's value are noised like the active ones, as in the paper's code.
        """
        if self.strengths is None:
            return self
        return dataclasses.replace(self, noise=self.compose(noise, self.noise))

    def moved(
        self, latents: torch.Tensor, outside: torch.Tensor, index: int, of: int
    ) -> torch.Tensor:
        """Latents (1, c, h, w) before evaluation `index` of `of`: those that the edit has not
        reached are from `outside`.

        Differential diffusion (Levin & Fried 2023, algorithm 1): a latent is held at its template's
        value as long as one minus its strength is above the share of the evaluations that are done.
        """
        if not self.held:
            return latents
        if self.strengths is None:
            return self.compose(latents, outside)
        waiting = (_WHOLE - self.strengths) * of > _WHOLE * index
        return torch.where(self.active & ~waiting, latents, outside)


_WHOLE = 255
"""A strength that edits from the first evaluation on."""


def canvas_of(clean: torch.Tensor, active: torch.Tensor, *, soft: bool = False) -> Canvas:
    """Make a canvas from a template's latents (c, h, w) and a mask of latents (h, w); if that is
    `soft`, its values are strengths.
    """
    generator = torch.Generator("cpu").manual_seed(TEMPLATE_SEED)
    noise = torch.randn((1, *clean.shape), generator=generator)
    strengths = active[None, None].float() if soft else None
    return Canvas(clean[None], noise, active[None, None].bool(), strengths)

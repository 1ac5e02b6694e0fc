"""A request while it is denoised. Knows samplers and tensors, nothing of engines or Triton."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from tessera.contract import Stats
from tessera.denoise.canvas import Canvas
from tessera.denoise.sampler import Sampler
from tessera.plan import ControlUse, Plan
from tessera.types import Conditions


class Sparsity(Protocol):
    """What a tick reads of a request's sparse state: see `tessera.edits.steps.SparseState`."""

    @property
    def kinds(self) -> Sequence[bool]:
        """For each step, whether it is sparse."""
        ...

    @property
    def active_latents(self) -> int:
        """How many latents a sparse step computes."""
        ...


@dataclass
class RunningControl:
    """A ControlNet that controls a running request.

    Attributes:
        use: which ControlNet, its scale, and the steps in which it applies.
        key: identifies the request's control image and text to the ControlNet; unique.
        image: the control image (h, w, 3), UINT8.
        told: whether the ControlNet knows the key.
    """

    use: ControlUse
    key: int
    image: torch.Tensor
    told: bool = False


@dataclass
class Running:
    """A request on its way from noise to latents.

    Attributes:
        plan: the plan that `encode` made.
        conditions: further inputs of the UNet, by name, one row per branch. A guided request has
            two branches, the negative one first.
        sampler: the request's sampler.
        latents: (1, c, h, w), after the last finished step.
        canvas: the canvas of an edit; `None` for a generation.
        controls: its ControlNets.
        sparse: its sparse state; `None` if all steps use the dense UNet.
        side: further inputs of the side path's network in this tick; empty if the UNet's usual
            engines run the request.
        step: number of finished steps.
        stats: measurements so far.
        started: monotonic time at which it was admitted.
        error: the reason why it ended early, if it did.
    """

    plan: Plan
    conditions: Conditions
    sampler: Sampler
    latents: torch.Tensor
    canvas: Canvas | None = None
    controls: tuple[RunningControl, ...] = ()
    sparse: Sparsity | None = None
    side: Conditions = field(default_factory=dict)
    step: int = 0
    stats: Stats = field(default_factory=Stats)
    started: float = field(default_factory=time.monotonic)
    error: Exception | None = None

    @cached_property
    def branches(self) -> int:
        """Number of rows of the network's input that this request takes."""
        return 2 if self.plan.guided else 1

    @cached_property
    def rows(self) -> torch.Size:
        """Shape of this request's part of the network's input: (branches, c, h, w)."""
        return torch.Size((self.branches, *self.latents.shape[1:]))

    @cached_property
    def timesteps(self) -> torch.Tensor:
        """The network's timesteps (steps, branches), float32."""
        return self.sampler.timesteps.float()[:, None].repeat(1, self.branches)

    @property
    def entries(self) -> Conditions:
        """The network's inputs in this tick, except sample and timestep."""
        return {**self.conditions, **self.side}

    @property
    def goes_sparsely(self) -> bool:
        """Whether the next step is sparse."""
        return self.sparse is not None and self.sparse.kinds[self.step]

    @property
    def controls_now(self) -> list[RunningControl]:
        """The ControlNets that apply to the next step."""
        steps = len(self.sampler.timesteps)
        return [c for c in self.controls if c.use.scale and c.use.applies_at(self.step, steps)]

    @property
    def finished(self) -> bool:
        """Whether every step is done or the request has failed."""
        return self.error is not None or self.step == len(self.sampler.timesteps)


def start(
    plan: Plan,
    conditions: Conditions,
    sampler: Sampler,
    *,
    shape: tuple[int, int, int],
    canvas: Canvas | None = None,
    controls: tuple[RunningControl, ...] = (),
) -> Running:
    """A request before its first step.

    Args:
        plan: the plan that `encode` made.
        conditions: see `Running`.
        sampler: a sampler that no other request uses.
        shape: (c, h, w) of its latents.
        canvas: the canvas, for an edit. Active latents get noise of the request's seed, the others
            the canvas's noise.
        controls: its ControlNets.
    """
    noise = sampler.initial_noise(*shape)
    if canvas is None:
        latents = sampler.noised(noise, noise, 0)
        return Running(plan, conditions, sampler, latents, controls=controls)
    latents = sampler.noised(canvas.clean, canvas.compose(noise, canvas.noise), 0)
    return Running(plan, conditions, sampler, latents, canvas=canvas, controls=controls)

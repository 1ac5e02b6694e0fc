"""A request while it is denoised."""

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
    """What a request needs to be denoised sparsely, as far as a tick has to know it."""

    @property
    def kinds(self) -> Sequence[bool]:
        """For each of its steps, whether it is run sparsely."""
        ...

    @property
    def active_latents(self) -> int:
        """How many latents a sparse step computes."""
        ...


@dataclass
class RunningControl:
    """A ControlNet that guides a request.

    Attributes:
        use: which, how strongly and when.
        key: names the request's picture and text to the ControlNet; no two guides have the same.
        image: the control picture (h, w, 3), UINT8.
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
        conditions: further inputs of the UNet, by name, one row per branch: with guidance there are
            two, the negative one first.
        latents: (1, c, h, w), as of the last finished step.
        canvas: what an edit starts from; `None` for a generation.
        controls: its ControlNets.
        sparse: what it is denoised sparsely with; `None` for the dense UNet.
        side: what the side path's network takes beside `conditions` in this tick; empty if the
            UNet's own engines run it.
        step: how many steps are done.
        stats: what has been measured so far.
        started: when it was admitted, of the monotonic clock.
        error: why it ended early, if it did.
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
        """Rows of the network's input that this request takes."""
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
        """The network's inputs in this tick beside sample and timestep."""
        return {**self.conditions, **self.side}

    @property
    def goes_sparsely(self) -> bool:
        """Whether the next step is run sparsely."""
        return self.sparse is not None and self.sparse.kinds[self.step]

    @property
    def controls_now(self) -> list[RunningControl]:
        """The ControlNets that take part in the next step."""
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
        plan: what was asked for.
        conditions: see `Running`.
        sampler: of this request alone.
        shape: of its latents: (c, h, w).
        canvas: what it starts from, if it is an edit: its active latents get noise of the request's
            seed, the others the canvas's own.
        controls: its ControlNets.
    """
    noise = sampler.initial_noise(*shape)
    if canvas is None:
        latents = sampler.noised(noise, noise, 0)
        return Running(plan, conditions, sampler, latents, controls=controls)
    latents = sampler.noised(canvas.clean, canvas.compose(noise, canvas.noise), 0)
    return Running(plan, conditions, sampler, latents, canvas=canvas, controls=controls)

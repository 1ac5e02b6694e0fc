"""A request while it is denoised. Knows samplers and tensors, nothing of engines or Triton."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch

from tessera.contract import MAX_CONTROLS, Stats
from tessera.denoise.canvas import Canvas
from tessera.denoise.sampler import Sampler
from tessera.plan import ControlUse, Plan
from tessera.types import Conditions


class Sparsity(Protocol):
    """What a tick reads of a request's sparse state: see `tessera.edits.steps.SparseState`."""

    @property
    def kinds(self) -> Sequence[bool]:
        """For each evaluation, whether it is sparse."""
        ...

    @property
    def planned(self) -> Sequence[bool]:
        """For each evaluation, whether the wanted quality lets it be sparse."""
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
        image: the control image (h, w, 3), UINT8; with a fourth channel where pixels are hidden,
            see `tessera.requests.controls.prepared`.
        told: whether the ControlNet knows the key.
    """

    use: ControlUse
    key: int
    image: torch.Tensor
    told: bool = False


def controls_of(plan: Plan, images: torch.Tensor) -> tuple[RunningControl, ...]:
    """The ControlNets of a plan, each with its control image, in the plan's order."""
    first = plan.ticket * MAX_CONTROLS  # no two jobs have the same ticket
    pairs = zip(plan.controls, images, strict=True)
    return tuple(RunningControl(use, first + i, image) for i, (use, image) in enumerate(pairs))


@dataclass
class Running:
    """A request on its way from noise to latents.

    Attributes:
        plan: the plan that `encode` made.
        conditions: further inputs of the UNet, by name, one row per branch. A guided request has
            two branches, the negative one first. Each further prompt has one more.
        sampler: the request's sampler.
        latents: (1, c, h, w), after the last finished step.
        canvas: the canvas of an edit; `None` for a generation.
        masked: further channels of an inpainting UNet's input (1, 1 + c, h, w), see
            `tessera.codec.vae.encode_masked`; `None` for other UNets.
        controls: its ControlNets.
        sparse: its sparse state; `None` if all steps use the dense UNet.
        weights: how much each prompt counts in each latent (prompts, h, w), if there are several.
        side: further inputs of the side path's network in this tick; empty if the UNet's usual
            engines run the request.
        step: number of finished evaluations of the network: of steps, with most samplers.
        stats: measurements so far.
        started: monotonic time at which it first had a slot; `None` before.
        paused: monotonic time since which it has lost its slot; `None` if it has one.
        paused_s: how long it was without one before.
        error: the reason why it ended early, if it did.
    """

    plan: Plan
    conditions: Conditions
    sampler: Sampler
    latents: torch.Tensor
    canvas: Canvas | None = None
    masked: torch.Tensor | None = None
    controls: tuple[RunningControl, ...] = ()
    sparse: Sparsity | None = None
    weights: torch.Tensor | None = None
    side: Conditions = field(default_factory=dict)
    step: int = 0
    stats: Stats = field(default_factory=Stats)
    started: float | None = None
    paused: float | None = None
    paused_s: float = 0.0
    error: Exception | None = None

    def begin(self) -> None:
        """Note that it has a slot."""
        now = time.monotonic()
        self.paused_s += now - (self.paused or now)
        self.started, self.paused = self.started or now, None

    def pause(self) -> None:
        """Note that it has no slot, if it had one."""
        if self.started is not None and self.paused is None:
            self.paused = time.monotonic()

    @cached_property
    def branches(self) -> int:
        """Number of rows of the network's input that this request takes."""
        return self.plan.prompt_count + (1 if self.plan.guided else 0)

    @cached_property
    def rows(self) -> torch.Size:
        """Shape of this request's part of the network's input: (branches, c, h, w)."""
        return torch.Size((self.branches, *self.latents.shape[1:]))

    @cached_property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """Those of the latents and of a branch's conditions: a text may be longer than another.
        Requests share calls if these are equal.
        """
        tensors = (self.latents, *self.conditions.values())
        return tuple(tuple(tensor.shape[1:]) for tensor in tensors)

    @cached_property
    def timesteps(self) -> torch.Tensor:
        """The network's timesteps (evaluations, branches), float32."""
        return self.sampler.timesteps.float()[:, None].repeat(1, self.branches)

    @property
    def entries(self) -> Conditions:
        """The network's inputs in this tick, except sample and timestep."""
        return {**self.conditions, **self.side}

    @property
    def network_input(self) -> torch.Tensor:
        """The sample that the network takes in this tick (branches, c, h, w)."""
        scaled = self.sampler.network_input(self.latents, self.step)
        whole = scaled if self.masked is None else torch.cat([scaled, self.masked], 1)
        return whole.expand(self.branches, -1, -1, -1)

    @property
    def steps_done(self) -> int:
        """Number of finished steps."""
        return self.sampler.finished(self.step)

    @property
    def goes_sparsely(self) -> bool:
        """Whether the next evaluation is sparse."""
        kinds = self.sparse.kinds if self.sparse is not None else ()
        return self.step < len(kinds) and kinds[self.step]

    @property
    def controls_now(self) -> list[RunningControl]:
        """The ControlNets that apply to the next evaluation. As in diffusers, their start and end
        are shares of the evaluations.
        """
        steps = self.sampler.evaluations
        return [c for c in self.controls if c.use.scale and c.use.applies_at(self.step, steps)]

    @property
    def predicted(self) -> torch.Tensor | None:
        """Clean latents (1, c, h, w) that the latest prediction amounts to; an edit's inactive ones
        are the template's. `None` before the first step.
        """
        clean = self.sampler.predicted
        if clean is None or self.canvas is None:
            return clean
        return self.canvas.compose(clean, self.canvas.clean)

    @property
    def finished(self) -> bool:
        """Whether every step is done or the request has failed."""
        return self.error is not None or self.step == self.sampler.evaluations


def start(
    plan: Plan,
    conditions: Conditions,
    sampler: Sampler,
    *,
    shape: tuple[int, int, int],
    canvas: Canvas | None = None,
    masked: torch.Tensor | None = None,
    controls: tuple[RunningControl, ...] = (),
    weights: torch.Tensor | None = None,
) -> Running:
    """A request before its first step.

    Args:
        plan: the plan that `encode` made.
        conditions: see `Running`.
        sampler: a sampler that no other request uses.
        shape: (c, h, w) of its latents.
        canvas: the canvas, for an edit. Active latents get noise of the request's seed, the others
            the canvas's noise; all get the request's where the canvas is not held.
        masked: see `Running`.
        controls: its ControlNets.
        weights: of its prompts, see `Running`.
    """
    noise = sampler.initial_noise(*shape)
    more: dict[str, Any] = {"masked": masked, "controls": controls, "weights": weights}
    if canvas is None:
        latents = sampler.noised(noise, noise, 0)
        return Running(plan, conditions, sampler, latents, **more)
    canvas = canvas.begun(noise)
    noise = canvas.compose(noise, canvas.noise) if canvas.held else noise
    latents = sampler.noised(canvas.clean, noise, 0)
    return Running(plan, conditions, sampler, latents, canvas=canvas, **more)

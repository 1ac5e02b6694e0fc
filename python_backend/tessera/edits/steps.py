"""Denoising steps of edits on the token-sparse UNet.

Decides which requests share a call, gets their caches from the template store, and makes the call.
While a step runs, a thread reads and assembles the cached inputs of the next one. Knows engines and
the template store, nothing of Triton.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import max_pool2d

from tessera.denoise.canvas import TEMPLATE_SEED, Canvas
from tessera.denoise.running import Running
from tessera.denoise.tick import Controls, Regroup
from tessera.edits.chooser import Kinds, StepChooser
from tessera.networks.program import Program
from tessera.plan import Plan
from tessera.sparse.batch import Batch, Part
from tessera.sparse.engines import SparseUNetEngines
from tessera.sparse.tables import level_sizes, make_tables
from tessera.templates.cache import StepCache
from tessera.templates.memory import StepMemory
from tessera.templates.store import Damaged, Recording, RecordingKey, TemplateStore
from tessera.types import Conditions, Tensors

MAX_PADDING = 0.2
"""Largest share of padding among the rows of a call that several masks share."""

WARM_UP = 0.1
"""Share of a schedule's steps, the noisiest, that is run densely: there the prompt decides what the
mask will show, and a template that was recorded without a prompt misleads most
(docs/internals/templates.md has the figures)."""

MARGIN = 1
"""How many latents the computed tokens extend beyond the mask."""

READ_AHEAD = 3
"""How many steps ahead recordings are read."""


_numbers = itertools.count()


@dataclass
class SparseState:
    """The state of a request that is denoised sparsely.

    Attributes:
        part: the request's mask.
        recording: the recording of its template.
        conditions: the network's conditions, with the text's keys and values instead of the text.
        kinds: for each step, whether it is sparse.
        number: unique number of this state.
    """

    part: Part
    recording: Recording
    conditions: Conditions
    kinds: Kinds
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def active_latents(self) -> int:
        """How many latents a sparse step computes."""
        return self.part.tables.levels[0].count

    def sparse_from(self, step: int) -> list[int]:
        """The request's sparse steps from `step` on."""
        return [i for i in range(step, len(self.kinds)) if self.kinds[i]]


@dataclass
class _Call:
    """Requests that share calls, and their cached inputs by the kept steps they come from."""

    batch: Batch
    ready: dict[tuple[int, ...], Future[Tensors]] = field(default_factory=dict)


class SparseSteps:
    """The token-sparse UNet for running requests.

    Args:
        engines: the bundle's sparse engines.
        program: the program of its UNet.
        store: the template store.
        memory: keeps recorded steps that have been read.
        bundle: the bundle's digest.
        max_rows: largest number of branches in a call.
        controls: runs the requests' ControlNets.
    """

    def __init__(
        self,
        engines: SparseUNetEngines,
        program: Program,
        store: TemplateStore,
        memory: StepMemory,
        *,
        bundle: str,
        max_rows: int,
        controls: Controls | None = None,
    ) -> None:
        self._engines = engines
        self._program = program
        self._store = store
        self.memory = memory
        self._bundle = bundle
        self._max_rows = max_rows
        self._controls = controls
        self._assembler = ThreadPoolExecutor(1, thread_name_prefix="caches")
        self._calls: dict[tuple[int, ...], _Call] = {}

    def admit(
        self, plan: Plan, canvas: Canvas, conditions: Conditions, chooser: StepChooser | None = None
    ) -> SparseState | None:
        """The sparse state of an edit.

        Args:
            plan: the edit's plan. In mode `sparse`, every step that may be sparse is sparse.
            canvas: the edit's canvas.
            conditions: the network's conditions, one row per branch.
            chooser: decides in mode `auto`. Without it, every step that may be sparse is sparse.

        Returns:
            `None` if the template has no recording for this schedule, or no step should be sparse.
        """
        key = RecordingKey(self._bundle, plan.template, plan.scheduler, plan.steps, TEMPLATE_SEED)
        recording = self._store.find(key)
        if recording is None:
            return None
        mask = widened(canvas.active, MARGIN)
        branches = conditions["encoder_hidden_states"].shape[0]
        loads = self._loads(recording, plan)
        if plan.mode == "sparse" or chooser is None:
            kinds = tuple(load is not None for load in loads)
        else:
            height, width = mask.shape
            kinds = chooser.kinds((height, width), int(mask.sum()), loads, branches=branches)
        if not any(kinds):
            return None
        part = Part(make_tables(mask, self._program.paddings), branches)
        state = SparseState(part, recording, self._engines.project_text(conditions), kinds)
        self._read_ahead(state, plan, 0)
        return state

    def groups(self, requests: Sequence[Running]) -> list[list[Running]]:
        """Group requests that can share a call: of one latent size, with little padding."""
        waiting = sorted(requests, key=lambda r: (tuple(r.latents.shape), -_active(r)))
        groups: list[list[Running]] = []
        while waiting:
            first, *others = waiting
            group, waiting = [first], []
            for other in others:
                fits = other.latents.shape == first.latents.shape and self._fits([*group, other])
                (group if fits else waiting).append(other)
            groups.append(group)
        keys = [_key(group) for group in groups]
        self._calls = {key: call for key, call in self._calls.items() if key in keys}
        return groups

    def predict(self, group: list[Running]) -> list[torch.Tensor]:
        """The network's predictions (branches, c, h, w), zero outside the active latents.

        Raises:
            Regroup: a recording could not be read, and its requests are dense from now on. Or a
                ControlNet failed, and its requests got its error.
        """
        call = self._call(group)
        join = self._controls.start(group) if self._controls else None
        began = time.perf_counter()
        try:
            cached = self._cached(call, group, ahead=0).result()
        except Damaged as error:
            self._lose(group, error)
            raise Regroup from error
        called = time.perf_counter()
        self._cached(call, group, ahead=1)
        states = [_state(r) for r in group]
        sample = torch.cat(
            [r.sampler.network_input(r.latents, r.step).expand(r.rows) for r in group]
        )
        timestep = torch.cat([r.timesteps[r.step] for r in group])
        conditions = {
            name: torch.cat([state.conditions[name] for state in states])
            for name in states[0].conditions
        }
        maps = join.maps(self._shapes(group[0]), len(sample)) if join else None
        rows = self._engines.predict(call.batch, sample, timestep, conditions, cached, maps)
        ended = time.perf_counter()
        for request in group:
            request.stats.sparse_ticks += 1
            request.stats.cache_load_ms += 1e3 * (called - began)
            request.stats.engine_ms += 1e3 * (ended - called)
        prediction = call.batch.scatter(rows, torch.zeros_like(sample))
        return list(prediction.split([r.branches for r in group]))

    def _shapes(self, request: Running) -> list[torch.Size]:
        """Shapes (c, h, w) of the residuals that a ControlNet returns for a request."""
        height, width = request.latents.shape[2:]
        sizes = level_sizes((height, width), self._program.paddings)
        places = self._program.residuals.values()
        return [torch.Size((channels, *sizes[level])) for level, channels in places]

    def _lose(self, group: list[Running], error: Damaged) -> None:
        """Continue the requests of a damaged recording densely. It will be made again."""
        self.memory.drop(error.digest)
        for request in group:
            if _state(request).recording.key.digest == error.digest:
                request.sparse = None

    def _fits(self, group: list[Running]) -> bool:
        rows = sum(r.branches for r in group)
        used = sum(r.branches * _active(r) for r in group)
        most = max(_active(r) for r in group)
        return rows <= self._max_rows and used >= (1 - MAX_PADDING) * most * rows

    def _call(self, group: list[Running]) -> _Call:
        key = _key(group)
        if key not in self._calls:
            self._calls[key] = _Call(Batch(self._program, [_state(r).part for r in group]))
        return self._calls[key]

    def _cached(self, call: _Call, group: list[Running], *, ahead: int) -> Future[Tensors]:
        """The cached inputs of the group's current step, or of the sparse step `ahead` of it."""
        states = [_state(r) for r in group]
        nexts = [
            state.sparse_from(r.step)[: ahead + 1][-1]
            for state, r in zip(states, group, strict=True)
        ]
        steps = [r.plan.first_step + step for r, step in zip(group, nexts, strict=True)]
        kept = tuple(
            state.recording.storage.source(step) for state, step in zip(states, steps, strict=True)
        )
        if kept not in call.ready:
            for old in list(call.ready)[:-1]:
                del call.ready[old]  # all except the one in use
            sources = [(state.recording, step) for state, step in zip(states, kept, strict=True)]
            call.ready[kept] = self._assembler.submit(self._assemble, call.batch, sources)
            for request, state, step in zip(group, states, nexts, strict=True):
                self._read_ahead(state, request.plan, step + 1)
        return call.ready[kept]

    def _assemble(self, batch: Batch, sources: list[tuple[Recording, int]]) -> Tensors:
        with torch.inference_mode():
            reads = [self._read(recording, step) for recording, step in sources]
            caches = [StepCache(read.result()) for read in reads]
            return batch.cached(caches, device=self._engines.device)

    def _loads(self, recording: Recording, plan: Plan) -> list[float | None]:
        """Milliseconds until each step's recording is in memory; `None` for the warm-up steps."""
        loads: list[float | None] = []
        loading: set[int] = set()
        for step in range(plan.first_step, plan.steps):
            source = recording.storage.source(step)
            if step < math.ceil(WARM_UP * plan.steps):
                loads.append(None)
            elif source in loading or self.memory.holds((recording.key.digest, source)):
                loads.append(0.0)
            else:
                loading.add(source)
                loads.append(self.memory.read_ms)
        return loads

    def _read_ahead(self, state: SparseState, plan: Plan, step: int) -> None:
        recording = state.recording
        next_steps = state.sparse_from(step)[:READ_AHEAD]
        for source in sorted({recording.storage.source(plan.first_step + i) for i in next_steps}):
            self.memory.ahead(
                (recording.key.digest, source), partial(self._store.load, recording, source)
            )

    def _read(self, recording: Recording, step: int) -> Future[Tensors]:
        return self.memory.get(
            (recording.key.digest, step), partial(self._store.load, recording, step)
        )


def widened(active: torch.Tensor, margin: int) -> npt.NDArray[np.bool_]:
    """Grow a mask of latents (1, 1, h, w) by `margin` latents; returns it as (h, w)."""
    wide = max_pool2d(active.float(), 2 * margin + 1, 1, margin)
    mask: npt.NDArray[np.bool_] = wide[0, 0].bool().numpy()
    return mask


def _state(request: Running) -> SparseState:
    assert isinstance(request.sparse, SparseState), "only requests with a sparse state come here"
    return request.sparse


def _active(request: Running) -> int:
    return _state(request).active_latents


def _key(group: list[Running]) -> tuple[int, ...]:
    return tuple(_state(r).number for r in group)

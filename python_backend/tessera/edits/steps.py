"""Denoising steps of edits on the token-sparse UNet.

Decides which requests share a call, gets their caches from the template store, and makes the call.
While a step runs, a thread reads and assembles the cached inputs of the next one. Knows engines and
the template store, nothing of Triton.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from tessera.contract import EditQuality
from tessera.denoise.canvas import TEMPLATE_SEED, Canvas
from tessera.denoise.running import Running
from tessera.denoise.tick import Controls, Regroup, end_lost
from tessera.edits.chooser import Kinds, StepChooser
from tessera.edits.grouping import grouped
from tessera.edits.quality import BUILT_IN, CAREFUL, WARM_UP, Policies, Policy
from tessera.edits.state import SparseState, key_of, state_of, widened
from tessera.engines.base import Refittable
from tessera.engines.devices import DeviceLost
from tessera.plan import AdapterUse, Plan
from tessera.sparse.batch import Part
from tessera.sparse.engines import Share, SparseUNets
from tessera.sparse.tables import level_sizes, make_tables
from tessera.templates.cache import StepCache
from tessera.templates.memory import StepMemory
from tessera.templates.nearest import Chosen, choose
from tessera.templates.store import Damaged, Recording, RecordingKey, TemplateStore
from tessera.types import Conditions, Tensors

READ_AHEAD = 3
"""How many steps ahead recordings are read."""
STALLED_S = 20.0
"""Storage that has not sent a recorded step within this is done without."""


@dataclass
class _Ready:
    """A share of a group's calls, with what is ready for its device.

    Attributes:
        share: the share.
        conditions: of its rows.
        inputs: its cached inputs, by the kept steps they come from.
    """

    share: Share
    conditions: Tensors
    inputs: dict[tuple[int, ...], Future[Tensors]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Way:
    """What an edit may do: tokens it computes (h, w), the kinds of its steps, the expected cost."""

    mask: npt.NDArray[np.bool_]
    margin: int
    kinds: Kinds
    planned: Kinds
    cost: float


class SparseSteps:
    """The token-sparse UNet for running requests.

    Args:
        unets: the token-sparse UNet.
        store: the template store.
        memories: keep recorded steps that have been read, one for each device; they may share a
            tier.
        bundle: the bundle's digest.
        max_rows: largest number of branches in a call.
        controls: runs the requests' ControlNets.
        policies: what edits do for their quality.
    """

    def __init__(
        self,
        unets: SparseUNets,
        store: TemplateStore,
        memories: Sequence[StepMemory],
        *,
        bundle: str,
        max_rows: int,
        controls: Controls | None = None,
        policies: Policies = BUILT_IN,
    ) -> None:
        self.policies = policies
        self._unets = unets
        self._program = unets.program
        self._store = store
        self._memories = tuple(memories)
        self._bundle = bundle
        self._max_rows = max_rows
        self._controls = controls
        self._assembler = ThreadPoolExecutor(len(memories), thread_name_prefix="caches")
        self._calls: dict[tuple[int, ...], list[_Ready]] = {}
        self._adapters: tuple[AdapterUse, ...] = ()

    @property
    def graphs(self) -> Mapping[str, Refittable]:
        """What is refitted for an adapter set."""
        return self._unets.graphs

    def adapt(self, adapters: tuple[AdapterUse, ...]) -> None:
        """Note which adapter set is in the engines from now on."""
        self._adapters = adapters

    @property
    def memory(self) -> StepMemory:
        """Recorded steps for the first device."""
        return self._memories[0]

    def admit(
        self, plan: Plan, canvas: Canvas, conditions: Conditions, chooser: StepChooser | None = None
    ) -> SparseState | None:
        """The sparse state of an edit.

        Args:
            plan: the edit's plan. In mode `sparse`, every step that may be sparse is sparse.
            canvas: the edit's canvas.
            conditions: the network's conditions, one row per branch.
            chooser: decides in mode `auto`. Without it, the first policy's steps are taken.

        Returns:
            `None` if no recording of the template serves it, or no step should be sparse.
        """
        key = RecordingKey.of_plan(self._bundle, plan, TEMPLATE_SEED)
        plain = plan.quality == EditQuality.FAST
        chosen = choose(self._store, key, plan.texts, conditions, plain=plain, guided=plan.guided)
        if chosen is None:
            return None
        ratio, adapted = plan.mask_ratio or 1.0, bool(plan.adapters)
        forced = (CAREFUL,) if plan.mode == "sparse" else ()
        found = self.policies.of(plan.quality, chosen.nearness, ratio, adapted=adapted) or forced
        if not found:
            return None
        if plan.mode == "sparse" or chooser is None:
            found, chooser = found[:1], None  # the same pixels whatever steps cost at the moment
        ways = [self._way(plan, canvas, chosen, policy, chooser) for policy in found]
        best = min(ways, key=lambda way: way.cost)
        if not any(best.kinds):
            return None
        tables = make_tables(best.mask, self._program.paddings)
        state = SparseState(
            parts=tuple(Part(tables, branches) for branches in chosen.branches),
            chosen=chosen,
            conditions=conditions,
            kinds=best.kinds,
            planned=best.planned,
            adapted=adapted,
            margin=best.margin,
        )
        self._read_ahead(state, plan, 0)
        return state

    def _way(
        self,
        plan: Plan,
        canvas: Canvas,
        chosen: Chosen,
        policy: Policy,
        chooser: StepChooser | None,
    ) -> _Way:
        """What an edit does by a policy, and its expected cost in milliseconds."""
        mask = widened(canvas.active, policy.margin)
        loads = self._loads(chosen.recordings, plan, policy)
        planned = tuple(load is not None for load in loads)
        if chooser is None:
            return _Way(mask, policy.margin, planned, planned, 0.0)
        height, width = mask.shape
        size, active, branches = (height, width), int(mask.sum()), sum(chosen.branches)
        kinds = chooser.kinds(size, active, loads, branches=branches)
        dense, sparse = (
            chooser.cost(kind, size, tokens)
            for kind, tokens in (("dense", height * width), ("sparse", active))
        )
        cost = kinds.count(True) * sparse + kinds.count(False) * dense
        return _Way(mask, policy.margin, kinds, planned, cost)

    def groups(self, requests: Sequence[Running]) -> list[list[Running]]:
        """Group requests that can share a call: of equal shapes, with little padding. Those whose
        text cannot be projected get the error.
        """
        able = [request for request in requests if self._projects(request)]
        groups = grouped(able, self._max_rows)
        keys = [key_of(group) for group in groups]
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
            cached = [ready.result(STALLED_S) for ready in self._cached(call, group, ahead=0)]
        except (Damaged, TimeoutError) as error:
            self._lose(group, error)
            raise Regroup from error
        called = time.perf_counter()
        self._cached(call, group, ahead=1)
        sample = torch.cat([r.network_input for r in group])
        timestep = torch.cat([r.timesteps[r.step] for r in group])
        maps = join.maps(self._shapes(group[0]), len(sample)) if join else None
        shares, conditions = [r.share for r in call], [r.conditions for r in call]
        try:
            prediction = self._unets.predict(shares, sample, timestep, conditions, cached, maps)
        except DeviceLost as lost:
            self._calls.clear()
            end_lost(group, lost)
            raise Regroup from lost
        ended = time.perf_counter()
        for request in group:
            request.stats.sparse_ticks += 1
            request.stats.cache_load_ms += 1e3 * (called - began)
            request.stats.engine_ms += 1e3 * (ended - called)
        return list(prediction.split([r.branches for r in group]))

    def _shapes(self, request: Running) -> list[torch.Size]:
        """Shapes (c, h, w) of the residuals that a ControlNet returns for a request."""
        height, width = request.latents.shape[2:]
        sizes = level_sizes((height, width), self._program.paddings)
        places = self._program.residuals.values()
        return [torch.Size((channels, *sizes[level])) for level, channels in places]

    def _lose(self, group: list[Running], error: Damaged | TimeoutError) -> None:
        """Continue requests of a damaged recording densely; if storage stalls, all of them."""
        for request in group:
            state = state_of(request)
            if isinstance(error, TimeoutError) or state.uses(error.digest):
                request.sparse = None
                for memory, recording in product(self._memories, state.recordings):
                    memory.drop(recording.key.digest)

    def _projects(self, request: Running) -> bool:
        """Project a request's text, which its LoRAs change, too; whether that was possible."""
        try:
            state_of(request).project(self._adapters, self._unets.project_text)
        except Exception as error:
            request.error = error
        return request.error is None

    def _call(self, group: list[Running]) -> list[_Ready]:
        key = key_of(group)
        if key not in self._calls:
            states = [state_of(r) for r in group]
            conditions = {
                name: torch.cat([state.projected[name] for state in states])
                for name in states[0].projected
            }
            self._calls[key] = [
                _Ready(share, self._unets.place(share, conditions))
                for share in self._unets.shares([part for s in states for part in s.parts])
            ]
        return self._calls[key]

    def _cached(
        self, call: list[_Ready], group: list[Running], *, ahead: int
    ) -> list[Future[Tensors]]:
        """Each share's cached inputs for the group's current step, or for the sparse step `ahead`
        of it.
        """
        states = [state_of(r) for r in group]
        nexts = [
            state.sparse_from(r.step)[: ahead + 1][-1]
            for state, r in zip(states, group, strict=True)
        ]
        sources = [
            (recording, recording.storage.source(r.plan.evaluations[step]))
            for state, r, step in zip(states, group, nexts, strict=True)
            for recording in state.recordings
        ]
        begun = [self._assembled(ready, sources) for ready in call]
        if any(new for _, new in begun):
            for request, state, step in zip(group, states, nexts, strict=True):
                self._read_ahead(state, request.plan, step + 1)
        return [inputs for inputs, _ in begun]

    def _assembled(
        self, ready: _Ready, sources: list[tuple[Recording, int]]
    ) -> tuple[Future[Tensors], bool]:
        """A share's cached inputs from recorded steps of the group, and whether it is new."""
        own = [sources[i] for i in ready.share.parts]
        kept = tuple(step for _, step in own)
        if kept in ready.inputs:
            return ready.inputs[kept], False
        for old in list(ready.inputs)[:-1]:
            del ready.inputs[old]  # all except the one in use
        ready.inputs[kept] = self._assembler.submit(self._assemble, ready.share, own)
        return ready.inputs[kept], True

    def _assemble(self, share: Share, sources: list[tuple[Recording, int]]) -> Tensors:
        memory, device = self._memories[share.device], self._unets.devices[share.device]
        with torch.inference_mode():
            reads = [
                memory.get(
                    (recording.key.digest, step),
                    partial(self._store.load, recording, step),
                    whole=recording.bytes,
                )
                for recording, step in sources
            ]
            caches = [StepCache(read.result()) for read in reads]
            return share.batch.cached(caches, device=device)

    def _loads(
        self, recordings: Sequence[Recording], plan: Plan, policy: Policy
    ) -> list[float | None]:
        """Milliseconds until what is recorded for each evaluation is in memory; `None` for those
        that have to be dense.
        """
        loads: list[float | None] = []
        loading: set[tuple[str, int]] = set()
        whole = recordings[0].key.evaluations
        for place in plan.evaluations:
            if policy.dense_at(place, whole) or place < math.ceil(WARM_UP * whole):
                loads.append(None)
                continue
            names = {(r.key.digest, r.storage.source(place)) for r in recordings}
            missing = {n for n in names - loading if not self.memory.holds(n)}
            loading |= missing
            loads.append(self.memory.read_ms * len(missing))
        return loads

    def _read_ahead(self, state: SparseState, plan: Plan, step: int) -> None:
        places = [plan.evaluations[i] for i in state.sparse_from(step)[:READ_AHEAD]]
        for recording in state.recordings:
            for source in sorted({recording.storage.source(place) for place in places}):
                self.memory.ahead(
                    (recording.key.digest, source),
                    partial(self._store.load, recording, source),
                    whole=recording.bytes,
                )

"""Switches the UNet between adapter sets: chooses the requests of each tick and their LoRA path.

The dense halves and the token-sparse UNet are refitted apart, each when a step needs it.

Knows running requests and engines, nothing of Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from tessera.adapters.factors import Ranks
from tessera.adapters.library import Library
from tessera.adapters.merge import BASE, AdapterSet, Patcher
from tessera.adapters.patchable import patchables_of
from tessera.adapters.path_chooser import LoraPathChooser
from tessera.adapters.side import Member, SidePath
from tessera.adapters.store import Adapter, AdapterStore
from tessera.adapters.targets import targets_of
from tessera.adapters.turns import Turns
from tessera.denoise.opening import OpenUNet
from tessera.denoise.running import Running
from tessera.denoise.tick import Predict
from tessera.engines.base import Refittable
from tessera.engines.bundle import Bundle
from tessera.plan import AdapterUse
from tessera.shared.load import LoraLoad
from tessera.shared.settings import AdapterSettings

SIDE = "side path"
"""The side path takes turns like a single adapter set."""
Turn: TypeAlias = AdapterSet | str


class AdapterSwitch:
    """Chooses the requests of every tick: those of one adapter set, which it puts into the engines,
    or all requests that fit the side path.

    A set whose files are still being read is skipped while another set can run.

    Args:
        patcher: puts adapter sets into the UNet.
        store: the adapters.
        paths: chooses the LoRA path, and has the side path.
        sparse: puts adapter sets into the token-sparse UNet, if there is one.

    Attributes:
        on_switch: told the milliseconds of each switch.
    """

    def __init__(
        self,
        patcher: Patcher,
        store: AdapterStore,
        paths: LoraPathChooser,
        *,
        sparse: Patcher | None = None,
    ) -> None:
        self._patcher = patcher
        self._sparse = sparse
        self._store = store
        self._paths = paths
        self._turns: Turns[Turn] = Turns(BASE)
        self._turn: list[Running] = []
        self._ranks: Ranks | None = None
        self.on_switch: Callable[[float], None] = lambda milliseconds: None

    @classmethod
    def of_bundle(
        cls,
        bundle: Bundle,
        unet: OpenUNet,
        settings: AdapterSettings,
        *,
        sparse: Mapping[str, Refittable],
    ) -> AdapterSwitch:
        """The switch of a bundle.

        Args:
            bundle: the bundle.
            unet: its UNet.
            settings: the operator's settings for LoRAs.
            sparse: graphs of its token-sparse UNet, if it has one.
        """
        targets = targets_of(bundle)
        patchers = [
            Patcher("unet", patchables_of(bundle, targets, graphs), budget=settings.memory)
            for graphs in (unet.halves, sparse)
        ]
        library = Library.of_bundle(bundle.folder, settings.folders)
        store = AdapterStore(library, targets, parts=["unet"], budget=settings.memory)
        side = SidePath.of_bundle(
            bundle,
            lambda use: store.load_digest(use.name, use.digest),
            devices=unet.devices,
            budget=settings.memory,
        )
        paths = LoraPathChooser(settings.path, side)
        return cls(patchers[0], store, paths, sparse=patchers[1])

    def read_ahead(self, adapter_set: AdapterSet, *, queued: bool = False) -> None:
        """Start reading the adapters of a request. See `AdapterStore.read_ahead`."""
        for use in adapter_set:
            self._store.read_ahead(use.name, use.digest, queued=queued)

    def ready(self, requests: Sequence[Running]) -> list[Running]:
        """Those that would not wait for files."""
        return [r for r in requests if not (_needs_set(r) and self._reading(r.plan.adapters))]

    def choose(
        self, running: Sequence[Running], predict: Predict, *, crowded: bool = False
    ) -> tuple[list[Running], Predict]:
        """The requests to run in this tick, and the function that predicts for them. `crowded` says
        whether others wait for slots.

        The function is `predict` if their adapter set is in the engines. If a set cannot be put in,
        its requests get the error.
        """
        self._turn = []
        self._ranks = None
        if not running:
            return [], predict
        for use in (use for request in running for use in request.plan.adapters):
            self._store.touch(use.digest)
        # A set whose files are still being read would stop all requests. So its requests skip this
        # tick, unless there are no others.
        on_side_path = [(r, self._set_on_side(r)) for r in running]
        able = [(r, uses) for r, uses in on_side_path if uses == BASE or not r.goes_sparsely]
        candidates = [(r, uses) for r, uses in able if not self._reading(uses)] or able
        members = self._paths.choose(
            candidates, self._patcher.current, self._turns, crowded=crowded
        )
        # Every request waits for one turn. The side path's members share one turn, in which all of
        # them run with their different sets. The others wait for the turn of their set.
        on_side = {id(request) for request, _ in members}
        turns = {id(r): SIDE if id(r) in on_side else self._turn_of(r, running) for r in running}
        readable = [t for t in turns.values() if isinstance(t, str) or not self._reading(t)]
        chosen = self._turns.choose(readable or turns.values())
        for request in running:
            request.stats.passed_over += turns[id(request)] != chosen
        if isinstance(chosen, str):
            self._turn, predict = self._run_on_side(members, predict)
        else:
            self._paths.rest()
            self._turn = self._put_in(chosen, [r for r in running if turns[id(r)] == chosen])
            predict = self._with(chosen, predict)
        self._paths.begin(self._turn, self._ranks)
        return self._turn, predict

    @property
    def in_sparse(self) -> AdapterSet:
        """The set that is in the token-sparse UNet."""
        return (self._sparse.current if self._sparse else BASE) or BASE

    def load(self) -> LoraLoad:
        """The LoRAs that are here."""
        return LoraLoad(
            merged=tuple(_named(kept) for kept in self._patcher.kept),
            current=_named(self._patcher.current or BASE),
            parsed=tuple(self._store.held),
            side=self._paths.side is not None and not self._paths.side.failed,
            refit_ms=round(self._turns.refit.ms, 3),
        )

    def add_tick(self, elapsed_ms: float) -> None:
        """Record how long the network's part of the tick took."""
        self._turns.tick.add(elapsed_ms)
        self._paths.observe(elapsed_ms)

    def _run_on_side(
        self, members: Sequence[Member], predict: Predict
    ) -> tuple[list[Running], Predict]:
        """Prepare requests for the side path.

        Returns:
            The requests whose set can be loaded, and the side path's predict function; `predict` if
            there are none.
        """
        side = self._paths.side
        assert side is not None, "only a bundle with a side path has members of it"
        self._ranks = side.ranks(adapter_set for _, adapter_set in members)
        sparsely = [r for r, _ in members if r.goes_sparsely]  # with the base
        if sparsely:
            self._put_in(BASE, sparsely)
        turn = side.enter([(r, uses) for r, uses in members if r.error is None])
        for request, adapter_set in members:
            request.stats.side_ticks += request.error is None and not request.goes_sparsely
            _note_first_step(request, adapter_set)
        return turn, side.predict if turn else predict

    def _put_in(self, chosen: AdapterSet, turn: list[Running]) -> list[Running]:
        """Put a set into the engines for its requests."""
        try:
            elapsed = self._apply(chosen, turn)
        except Exception as error:
            for request in turn:
                request.error = error
            return []
        if elapsed:
            self._turns.refit.add(elapsed)
            self.on_switch(elapsed)
        for request in turn:
            request.side = {}
            request.stats.refit_ms += elapsed
            request.stats.switches += elapsed > 0
            _note_first_step(request, chosen)
        return turn

    def _apply(self, chosen: AdapterSet, turn: list[Running]) -> float:
        """Put a set into the engines that take the next steps of its requests; returns the
        milliseconds.
        """
        elapsed = 0.0
        if any(not request.goes_sparsely for request in turn):
            elapsed += self._patcher.apply(chosen, self._load)
        if self._sparse and any(request.goes_sparsely for request in turn):
            elapsed += self._sparse.apply(chosen, self._load)
        return elapsed

    def _with(self, chosen: AdapterSet, predict: Predict) -> Predict:
        """The dense UNet with a set: a sparse step may become a dense one in the middle of a tick,
        when its recording is lost.
        """

        def adapted(*inputs: Any) -> torch.Tensor:
            self._patcher.apply(chosen, self._load)
            return predict(*inputs)

        return adapted

    def _set_on_side(self, request: Running) -> AdapterSet:
        """The set with which a request runs on the side path now: its set, or the base while its
        set is still being read and may come later.
        """
        adapter_set = request.plan.adapters
        return BASE if self._reading(adapter_set) and not _needs_set(request) else adapter_set

    def _turn_of(self, request: Running, running: Sequence[Running]) -> AdapterSet:
        """The set whose turn a request waits for when sets take turns.

        A request that may run some steps without its LoRAs gets them as soon as they are read and
        the engine is free for them. Until then it runs with the requests of the base.
        """
        adapter_set = request.plan.adapters
        if _needs_set(request) or adapter_set == self._turns.current:
            return adapter_set
        others_run_base = any(r.plan.adapters == BASE for r in running)
        return BASE if others_run_base or self._reading(adapter_set) else adapter_set

    def _reading(self, adapter_set: AdapterSet) -> bool:
        return any(self._store.reading(use.digest) for use in adapter_set)

    def _load(self, use: AdapterUse) -> Adapter:
        return self._store.load_digest(use.name, use.digest)


def _named(adapter_set: AdapterSet) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((use.name, use.weight) for use in adapter_set))


def _needs_set(request: Running) -> bool:
    """Whether a request may no longer run without its LoRAs."""
    return request.stats.adapted_at is not None or request.steps_done >= request.plan.adapters_by


def _note_first_step(request: Running, adapter_set: AdapterSet) -> None:
    """Record the first step that a request runs with its LoRAs."""
    if request.stats.adapted_at is None and adapter_set == request.plan.adapters:
        request.stats.adapted_at = request.steps_done

"""The UNet's adapter sets: which requests are run in a tick, by which path, and the refits between
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tessera.adapters.factors import Ranks
from tessera.adapters.library import Library
from tessera.adapters.merge import BASE, AdapterSet, Patcher
from tessera.adapters.patchable import patchables_of
from tessera.adapters.path_chooser import Paths
from tessera.adapters.side import Member, SidePath
from tessera.adapters.store import Adapter, AdapterStore
from tessera.adapters.targets import targets_of
from tessera.adapters.turns import Turns
from tessera.denoise.running import Running
from tessera.denoise.tick import Predict
from tessera.engines.base import Engine
from tessera.engines.bundle import Bundle
from tessera.plan import AdapterUse
from tessera.shared.settings import AdapterSettings

SIDE = "side path"
"""Takes turns as if it were one adapter set."""
Turn: TypeAlias = AdapterSet | str


class AdapterSwitch:
    """Chooses for every tick the requests that want the same adapter set, and puts it in; or all
    that the side path can take.

    A set whose files are still being read is passed over as long as another can be run.

    Args:
        patcher: of the UNet.
        store: of the LoRAs.
        paths: whether to use the side path, and with it that.
    """

    def __init__(self, patcher: Patcher, store: AdapterStore, paths: Paths) -> None:
        self._patcher = patcher
        self._store = store
        self._paths = paths
        self._turns: Turns[Turn] = Turns(BASE)
        self._turn: list[Running] = []
        self._ranks: Ranks | None = None

    @classmethod
    def of_bundle(
        cls, bundle: Bundle, engines: Mapping[str, Engine], settings: AdapterSettings, *, slots: int
    ) -> AdapterSwitch:
        """For the engines of a bundle's UNet, by graph; `slots` requests are denoised at a time."""
        targets = targets_of(bundle)
        patchables = patchables_of(bundle, targets, engines)
        library = Library.of_bundle(bundle.folder, settings.folders)
        store = AdapterStore(library, targets, parts=["unet"], budget=settings.memory)
        side = SidePath.of_bundle(
            bundle,
            lambda use: store.load_digest(use.name, use.digest),
            device=next(iter(engines.values())).describe().device,
            budget=settings.memory,
        )
        patcher = Patcher("unet", patchables, budget=settings.memory)
        return cls(patcher, store, Paths(settings.path, side, slots=slots))

    def read_ahead(self, adapter_set: AdapterSet, *, queued: bool = False) -> None:
        """Begin to read what a request on its way will want; see `AdapterStore.read_ahead`."""
        for use in adapter_set:
            self._store.read_ahead(use.name, use.digest, queued=queued)

    def choose(self, running: Sequence[Running], predict: Predict) -> tuple[list[Running], Predict]:
        """The requests to run in this tick, and by what: `predict` if their adapter set is in the
        engines.

        A set that cannot be put in fails its requests.
        """
        self._turn = []
        self._ranks = None
        if not running:
            return [], predict
        for use in (use for request in running for use in request.plan.adapters):
            self._store.touch(use.digest)
        # A set whose files are still being read would stop everybody, so its requests sit this tick
        # out, unless there is nobody else to run.
        candidates = [(r, own) for r in running if not self._reading(own := self._own(r))]
        candidates = candidates or [(r, self._own(r)) for r in running]
        members = self._paths.choose(candidates, self._patcher.current, self._turns)
        # Every request asks for one turn. The side path's members share one, so that all of them
        # run when it comes, whatever their sets; the others ask for the turn of their set.
        on_side = {id(request) for request, _ in members}
        turns = {id(r): SIDE if id(r) in on_side else self._turn_of(r, running) for r in running}
        readable = [t for t in turns.values() if isinstance(t, str) or not self._reading(t)]
        chosen = self._turns.choose(readable or turns.values())
        for request in running:
            request.stats.passed_over += turns[id(request)] != chosen
        if isinstance(chosen, str):
            self._turn, predict = self._aside(members, predict)
        else:
            self._paths.rest()
            self._turn = self._put_in(chosen, [r for r in running if turns[id(r)] == chosen])
        self._paths.begin(self._turn, self._ranks)
        return self._turn, predict

    def add_tick(self, elapsed_ms: float) -> None:
        """Tell how long the network's part of the tick took."""
        self._turns.tick.add(elapsed_ms)
        self._paths.observe(elapsed_ms)

    def _aside(self, members: Sequence[Member], predict: Predict) -> tuple[list[Running], Predict]:
        """Have requests run by the side path; those whose set can be loaded, and what runs them:
        `predict` if there are none.
        """
        side = self._paths.side
        assert side is not None, "nobody goes by a side path that is not there"
        self._ranks = side.ranks(own for _, own in members)
        turn = side.enter(members)
        for request, own in members:
            request.stats.side_ticks += request.error is None and not request.goes_sparsely
            _note(request, own)
        return turn, side.predict if turn else predict

    def _put_in(self, chosen: AdapterSet, turn: list[Running]) -> list[Running]:
        """Put a set into the engines for its requests."""
        try:
            elapsed = self._patcher.apply(chosen, self._load)
        except Exception as error:
            for request in turn:
                request.error = error
            return []
        if elapsed:
            self._turns.refit.add(elapsed)
        for request in turn:
            request.side = {}
            request.stats.refit_ms += elapsed
            request.stats.switches += elapsed > 0
            _note(request, chosen)
        return turn

    def _own(self, request: Running) -> AdapterSet:
        """The set that a request is run with by the side path: its own, unless that is still being
        read and may come later.
        """
        own = request.plan.adapters
        return BASE if self._reading(own) and not _late(request) else own

    def _turn_of(self, request: Running, running: Sequence[Running]) -> AdapterSet:
        """The set whose turn a request asks for when sets take turns.

        One that may do without its LoRAs for some steps gets them as soon as they are read and the
        engine is free for them; until then it goes with those that want the base.
        """
        own = request.plan.adapters
        if _late(request) or own == self._turns.current:
            return own
        others_run_base = any(r.plan.adapters == BASE for r in running)
        return BASE if others_run_base or self._reading(own) else own

    def _reading(self, adapter_set: AdapterSet) -> bool:
        return any(self._store.reading(use.digest) for use in adapter_set)

    def _load(self, use: AdapterUse) -> Adapter:
        return self._store.load_digest(use.name, use.digest)


def _late(request: Running) -> bool:
    """Whether a request may no longer do without its LoRAs."""
    return request.stats.adapted_at is not None or request.step >= request.plan.adapters_by


def _note(request: Running, own: AdapterSet) -> None:
    """Remember the first step that a request was run with its LoRAs."""
    if request.stats.adapted_at is None and own == request.plan.adapters:
        request.stats.adapted_at = request.step

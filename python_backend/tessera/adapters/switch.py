"""The UNet's adapter sets: which requests are run in a tick, and the refits between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tessera.adapters.library import Library
from tessera.adapters.merge import BASE, AdapterSet, Patcher
from tessera.adapters.patchable import patchables_of
from tessera.adapters.store import Adapter, Store
from tessera.adapters.targets import targets_of
from tessera.adapters.turns import Turns
from tessera.bundle import Bundle
from tessera.denoise import Running
from tessera.engines.base import Engine
from tessera.plan import AdapterUse


class AdapterSwitch:
    """Chooses for every tick the requests that want the same adapter set, and puts it in.

    A set whose files are still being read is passed over as long as another can be run.

    Args:
        patcher: of the UNet.
        store: of the LoRAs.
    """

    def __init__(self, patcher: Patcher, store: Store) -> None:
        self._patcher, self._store = patcher, store
        self._turns: Turns[AdapterSet] = Turns(BASE)

    @classmethod
    def of_bundle(
        cls, bundle: Bundle, engines: Mapping[str, Engine], *, budget: int
    ) -> AdapterSwitch:
        """For the engines of a bundle's UNet, by graph; `budget` is in bytes, once for parsed LoRAs
        and once for merged weights.
        """
        targets = targets_of(bundle)
        patchables = patchables_of(bundle, targets, engines)
        library = Library.of_bundle(bundle.folder)
        return cls(
            Patcher("unet", patchables, budget=budget),
            Store(library, targets, parts=["unet"], budget=budget),
        )

    def read_ahead(self, wanted: AdapterSet) -> None:
        """Begin to read what a request on its way will want."""
        for use in wanted:
            self._store.read_ahead(use.name, use.digest)

    def choose(self, running: Sequence[Running]) -> list[Running]:
        """The requests to run in this tick; their adapter set is in the engines.

        A set that cannot be put in fails its requests.
        """
        if not running:
            return []
        wanted = {id(r): self._wanted(r, running) for r in running}
        ready = [key for key in wanted.values() if not self._reading(key)]
        chosen = self._turns.choose(ready or wanted.values())
        turn = [r for r in running if wanted[id(r)] == chosen]
        try:
            elapsed = self._patcher.apply(chosen, self._load)
        except Exception as error:
            for request in turn:
                request.error = error
            return []
        if elapsed:
            self._turns.refit.add(elapsed)
        for request in turn:
            request.refit_ms += elapsed
            request.switches += elapsed > 0
            if request.adapted_at is None and chosen == request.plan.adapters:
                request.adapted_at = request.step
        for request in running:
            request.passed_over += wanted[id(request)] != chosen
        return turn

    def add_tick(self, elapsed_ms: float) -> None:
        """Tell how long the network's part of a tick took."""
        self._turns.tick.add(elapsed_ms)

    def _wanted(self, request: Running, running: Sequence[Running]) -> AdapterSet:
        """The set that a request is to be run with.

        One that may do without its LoRAs for some steps gets them as soon as they are read and the
        engine is free for them; until then it goes with those that want the base.
        """
        own = request.plan.adapters
        late = request.adapted_at is not None or request.step >= request.plan.adapters_by
        if late or own == self._turns.active:
            return own
        base_is_wanted = any(r.plan.adapters == BASE for r in running)
        return BASE if base_is_wanted or self._reading(own) else own

    def _reading(self, wanted: AdapterSet) -> bool:
        return any(self._store.reading(use.digest) for use in wanted)

    def _load(self, use: AdapterUse) -> Adapter:
        return self._store.load_digest(use.name, use.digest)

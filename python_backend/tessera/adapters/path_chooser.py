"""Which requests of a tick go by the low-rank side path, and which take turns with refits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tessera.adapters.costs import Costs, Group
from tessera.adapters.factors import Ranks
from tessera.adapters.merge import BASE, AdapterSet
from tessera.adapters.side import Member, SidePath
from tessera.adapters.turns import Turns
from tessera.denoise.running import Running
from tessera.shared.settings import LoraPath


class Paths:
    """Decides for every tick.

    Args:
        setting: what the operator chose.
        slots: requests that can be denoised at a time.
        side: `None` if the bundle has no graphs for it.

    Attributes:
        costs: of ticks, as `observe` was told.
    """

    def __init__(self, setting: LoraPath, side: SidePath | None, *, slots: int) -> None:
        self._slots = slots
        self._setting, self.side = setting, None if setting == LoraPath.REFIT else side
        self.costs = Costs()
        self._tick = _Tick()
        self._settled = False

    def choose(
        self, candidates: Sequence[Member], current: AdapterSet | None, turns: Turns[Any]
    ) -> list[Member]:
        """Those of the candidates that are to go by the side path: all that can, or none.

        Args:
            candidates: requests, and the sets that they may be run with now.
            current: the set that is in the UNet's engines.
            turns: with the cost of a refit.
        """
        side = self.side
        if side is None or side.failed:
            return []
        members = [(request, own) for request, own in candidates if side.takes(own)]
        sets = list(dict.fromkeys(own for _, own in members))
        if self._setting == LoraPath.SIDE:
            return members if any(own != BASE for own in sets) and side.opened() else []
        if len(sets) > 1:
            side.open()
        if not sets or not side.ready:
            return []
        groups = [_group([r for r, s in members if s == own], own == current) for own in sets]
        better = self.costs.side_is_better(
            groups,
            side.ranks(sets),
            refit_ms=turns.refit.ms,
            quantum=turns.quantum,
            full=len(candidates) >= self._slots,
        )
        return members if better else []

    def rest(self) -> None:
        """Told that others have their turn."""
        if self.side is not None:
            self.side.rest()

    def begin(self, turn: Sequence[Running], ranks: Ranks | None) -> None:
        """Told of each tick before it is run.

        Args:
            turn: its requests.
            ranks: of the side path's call; `None` for the UNet's own engines.
        """
        other = any(request.goes_sparsely or request.controls_now for request in turn)
        now = _Tick(tuple(map(id, turn)), ranks, 0 if other else _work(turn))
        self._settled = now == self._tick
        self._tick = now

    def observe(self, ms: float) -> None:
        """Told how long it took. The first tick of a batch does not count: engines prepare
        themselves for new shapes.
        """
        if self._settled and self._tick.work:
            self.costs.add(self._tick.work, ms, ranks=self._tick.ranks)


@dataclass(frozen=True)
class _Tick:
    """Requests, ranks, and the size of their call: 0 if there is more in it than the dense UNet."""

    requests: tuple[int, ...] = ()
    ranks: Ranks | None = None
    work: int = 0


def _group(requests: Sequence[Running], current: bool) -> Group:
    steps = max(len(r.sampler.timesteps) - r.step for r in requests)
    return Group(_work(requests), steps, current, len(requests))


def _work(requests: Sequence[Running]) -> int:
    return sum(r.rows.numel() for r in requests if not r.goes_sparsely)

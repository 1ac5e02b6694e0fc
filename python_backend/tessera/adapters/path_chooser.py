"""Chooses for each tick which requests use the low-rank side path and which take turns with refits.

Knows running requests and costs, nothing of Triton.
"""

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


class LoraPathChooser:
    """Chooses the LoRA path of every tick.

    Args:
        setting: what the operator chose.
        side: `None` if the bundle has no graphs for it.

    Attributes:
        costs: costs of ticks that `observe` received.
    """

    def __init__(self, setting: LoraPath, side: SidePath | None) -> None:
        self._setting, self.side = setting, None if setting == LoraPath.REFIT else side
        self.costs = Costs()
        self._tick = _Tick()
        self._repeated = False  # whether the last tick had the same requests and ranks

    def choose(
        self,
        candidates: Sequence[Member],
        current: AdapterSet | None,
        turns: Turns[Any],
        *,
        crowded: bool = False,
    ) -> list[Member]:
        """The candidates that run on the side path in this tick: all that can, or none.

        Args:
            candidates: requests, with the sets that they may run with now.
            current: the set that is in the UNet's engines.
            turns: gives the cost of a refit and the quantum.
            crowded: whether other requests wait for slots.
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
        groups = [_group([r for r, s in members if s == uses], uses == current) for uses in sets]
        better = self.costs.side_is_better(
            groups,
            side.ranks(sets),
            refit_ms=turns.refit.ms,
            quantum=turns.quantum,
            full=crowded,
        )
        return members if better else []

    def rest(self) -> None:
        """Free memory of the side path while other requests have their turn."""
        if self.side is not None:
            self.side.rest()

    def begin(self, turn: Sequence[Running], ranks: Ranks | None) -> None:
        """Announce a tick before it runs.

        Args:
            turn: its requests.
            ranks: ranks of the side path call; `None` for the UNet's usual engines.
        """
        not_only_dense = any(request.goes_sparsely or request.controls_now for request in turn)
        tick = _Tick(tuple(map(id, turn)), ranks, 0 if not_only_dense else _work(turn))
        self._repeated = tick == self._tick
        self._tick = tick

    def observe(self, ms: float) -> None:
        """Record how long the tick took. The first tick of a batch is left out, since engines
        prepare for new shapes in it.
        """
        if self._repeated and self._tick.work:
            self.costs.add(self._tick.work, ms, ranks=self._tick.ranks)


@dataclass(frozen=True)
class _Tick:
    """Requests, ranks and call size of a tick. The size is 0 if more than the dense UNet runs."""

    requests: tuple[int, ...] = ()
    ranks: Ranks | None = None
    work: int = 0


def _group(requests: Sequence[Running], current: bool) -> Group:
    steps = max(r.sampler.evaluations - r.step for r in requests)
    return Group(_work(requests), steps, current, len(requests))


def _work(requests: Sequence[Running]) -> int:
    return sum(r.rows.numel() for r in requests if not r.goes_sparsely)

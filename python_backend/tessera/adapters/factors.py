"""Adapter sets as low-rank inputs of the UNet's halves (`tessera.networks.lowrank`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from tessera.adapters.formats import Update
from tessera.adapters.lru import ByteLru
from tessera.adapters.merge import AdapterSet
from tessera.adapters.store import Adapter
from tessera.networks.slots import CONV, FACTORS, LINEAR, Slot, widths_of
from tessera.plan import AdapterUse

Factors = dict[str, torch.Tensor]
"""By name of the input: (rank, width) of one adapter set, (rows, rank, width) of a batch."""
Ranks = tuple[int, int]
"""Of layers of one point, and of convolutions of several."""
Term = tuple[Mapping[str, Update], float]
"""A LoRA's updates of the UNet by name of the weight, and its weight in the set."""
_WEIGHT = ".weight"
_KNOWN = 1000


class FactorStore:
    """Factors of adapter sets, made when they are first asked for.

    Args:
        halves: slots of the encoder and the decoder half.
        load: gives the LoRA of an element of a set.
        budget: bytes of factors to keep.
        device: where they are to be.
        dtype: their precision.

    Attributes:
        halves: as given.
    """

    def __init__(
        self,
        halves: Sequence[Mapping[str, Slot]],
        load: Callable[[AdapterUse], Adapter],
        *,
        budget: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.halves = tuple(halves)
        self._load = load
        self._device = device
        self._dtype = dtype
        self._kept: ByteLru[AdapterSet, list[Factors]] = ByteLru(budget)
        self._ranks: dict[AdapterSet, Ranks] = {}

    def ranks(self, adapter_set: AdapterSet) -> Ranks:
        """See `ranks_of`.

        Raises:
            TesseraError: of `load`.
        """
        if adapter_set not in self._ranks:
            if len(self._ranks) == _KNOWN:
                self._ranks.clear()
            self._ranks[adapter_set] = ranks_of(self._terms(adapter_set))
        return self._ranks[adapter_set]

    def get(self, adapter_set: AdapterSet) -> list[Factors]:
        """Factors of a set for each half.

        Raises:
            TesseraError: of `load`.
        """
        made = self._kept.get(adapter_set)
        if made is None:
            terms = self._terms(adapter_set)
            with torch.inference_mode():
                made = [self._placed(factors_of(slots, terms)) for slots in self.halves]
            self._kept.put(adapter_set, made, sum(t.nbytes for half in made for t in half.values()))
        return made

    def _placed(self, factors: Factors) -> Factors:
        return {name: t.to(self._device, self._dtype) for name, t in factors.items()}

    def _terms(self, adapter_set: AdapterSet) -> list[Term]:
        return [(self._load(use).updates.get("unet", {}), use.weight) for use in adapter_set]


def ranks_of(terms: Iterable[Term]) -> Ranks:
    """The largest sums of ranks that one layer has in a set."""
    ranks: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for updates, _ in terms:
        for name, update in updates.items():
            own = ranks[update.down[0].numel() > update.down.shape[1]]  # several points
            own[name] = own.get(name, 0) + update.rank
    linear, conv = (max(own.values(), default=0) for own in ranks)
    return linear, conv


def factors_of(slots: Mapping[str, Slot], terms: Sequence[Term]) -> Factors:
    """The factors of a set in one half, float32 on the CPU; weight and alpha / rank are in the
    upper ones. A kind of layers that the set does not change has rank 0.
    """
    changed = {layer: _updates(f"{layer}{_WEIGHT}", terms) for layer in slots}
    widths, made = widths_of(slots), Factors()
    for stacks in (LINEAR, CONV):
        own = {n: u for n, u in changed.items() if slots[n].stacks == stacks}
        rank = max((sum(update.rank for update, _ in u) for u in own.values()), default=0)
        down, up = (torch.zeros(rank, widths[stack]) for stack in stacks)
        for name, updates in own.items():
            _put(slots[name], updates, down, up)
        made |= dict(zip(stacks, (down, up), strict=True))
    return made


def padded_rank(rank: int, most: int) -> int:
    """The rank that a batch is given: the next power of two, so that few shapes come up, but not
    more than an engine takes.
    """
    return min(1 << max(rank - 1, 0).bit_length(), most)


def join(rows: Sequence[Factors], most: int) -> Factors:
    """Factors of a batch, on the rows' device and in their precision.

    Args:
        rows: of the adapter set of each row.
        most: largest rank that an engine takes; none of the rows has more.
    """
    joined = Factors()
    for name in FACTORS:
        parts = [row[name] for row in rows]
        rank = padded_rank(max(part.shape[0] for part in parts), most)
        out = parts[0].new_zeros(len(parts), rank, parts[0].shape[1])
        for index, part in enumerate(parts):
            out[index, : part.shape[0]] = part
        joined[name] = out
    return joined


def _updates(name: str, terms: Sequence[Term]) -> list[tuple[Update, float]]:
    return [(updates[name], weight) for updates, weight in terms if name in updates]


def _put(
    slot: Slot, updates: Sequence[tuple[Update, float]], down: torch.Tensor, up: torch.Tensor
) -> None:
    """Write a layer's updates into the stacks, one below the other."""
    start = 0
    for update, weight in updates:
        ranks = slice(start, start + update.rank)
        inner = update.down.float()
        if inner.ndim == 4:
            inner = inner.permute(0, 2, 3, 1)  # channels fastest
        down[ranks, slot.down] = inner.flatten(1)
        up[ranks, slot.up] = update.up.float().flatten(1).T * (weight * update.scale)
        start += update.rank

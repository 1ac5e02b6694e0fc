"""Adapter sets as low-rank inputs of the UNet's halves (`tessera.networks.lowrank`).

Knows parsed adapters and tensors, nothing of engines or requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch

from tessera.adapters.lru import ByteLru
from tessera.adapters.merge import AdapterSet
from tessera.adapters.store import Adapter
from tessera.adapters.updates import LowRank, Update
from tessera.networks.slots import CONV, FACTORS, LINEAR, Slot, widths_of
from tessera.plan import AdapterUse

Factors = dict[str, torch.Tensor]
"""By name of the input: (rank, width) for one adapter set, (rows, rank, width) for a batch."""
Ranks = tuple[int, int]
"""Rank of layers of one point, rank of larger convolutions."""
Term = tuple[Mapping[str, Update], float]
"""An adapter's updates of the UNet by name of the weight, and its weight in the set."""
_WEIGHT = ".weight"
_KNOWN = 1000
"""How many sets' ranks are remembered."""


class FactorStore:
    """Factors of adapter sets, computed on first use.

    Args:
        halves: slots of the encoder and the decoder half.
        load: loads the adapter of an adapter use.
        budget: bytes of factors to keep.
        device: device of the factors.
        dtype: precision of the factors.

    Attributes:
        halves: slots of the encoder and the decoder half.
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
        self._ranks: dict[AdapterSet, Ranks | None] = {}

    def ranks(self, adapter_set: AdapterSet) -> Ranks | None:
        """See `ranks_of`. `None` if the set is not made of low-rank products of layers only.

        Raises:
            TesseraError: an adapter cannot be loaded.
        """
        if adapter_set not in self._ranks:
            if len(self._ranks) == _KNOWN:
                self._ranks.clear()
            terms = self._terms(adapter_set)
            layers = {f"{layer}{_WEIGHT}" for slots in self.halves for layer in slots}
            self._ranks[adapter_set] = ranks_of(terms) if _are_low_rank(terms, layers) else None
        return self._ranks[adapter_set]

    def get(self, adapter_set: AdapterSet) -> list[Factors]:
        """Factors of a set for each half.

        Raises:
            TesseraError: an adapter cannot be loaded.
        """
        factors = self._kept.get(adapter_set)
        if factors is None:
            terms = self._terms(adapter_set)
            with torch.inference_mode():
                factors = [self._placed(factors_of(slots, terms)) for slots in self.halves]
            size = sum(t.nbytes for half in factors for t in half.values())
            self._kept.put(adapter_set, factors, size)
        return factors

    def _placed(self, factors: Factors) -> Factors:
        return {name: t.to(self._device, self._dtype) for name, t in factors.items()}

    def _terms(self, adapter_set: AdapterSet) -> list[Term]:
        return [(self._load(use).updates.get("unet", {}), use.weight) for use in adapter_set]


def ranks_of(terms: Iterable[Term]) -> Ranks:
    """The largest sum of ranks that any layer has in a set of low-rank products."""
    ranks: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for updates, _ in terms:
        for name, update in updates.items():
            by_layer = ranks[math.prod(update.shape[2:]) > 1]  # several points
            by_layer[name] = by_layer.get(name, 0) + (update.width or 0)
    linear, conv = (max(by_layer.values(), default=0) for by_layer in ranks)
    return linear, conv


def _are_low_rank(terms: Iterable[Term], layers: Collection[str]) -> bool:
    return all(
        update.width is not None and name in layers
        for updates, _ in terms
        for name, update in updates.items()
    )


def factors_of(slots: Mapping[str, Slot], terms: Sequence[Term]) -> Factors:
    """The factors of a set in one half, float32 on the CPU.

    The up factors include the adapter's weight and alpha / rank. A kind of layers that the set does
    not change has rank 0.
    """
    changed = {layer: _updates(f"{layer}{_WEIGHT}", terms) for layer in slots}
    widths, factors = widths_of(slots), Factors()
    for stacks in (LINEAR, CONV):
        of_kind = {n: u for n, u in changed.items() if slots[n].stacks == stacks}
        rank = max((sum(update.rank for update, _ in u) for u in of_kind.values()), default=0)
        down, up = (torch.zeros(rank, widths[stack]) for stack in stacks)
        for name, updates in of_kind.items():
            _put(slots[name], updates, down, up)
        factors |= dict(zip(stacks, (down, up), strict=True))
    return factors


def padded_rank(rank: int, most: int) -> int:
    """The rank of a batch: the next power of two, so that few shapes occur, but at most `most`."""
    return min(1 << max(rank - 1, 0).bit_length(), most)


def join(rows: Sequence[Factors], most: int) -> Factors:
    """Stack the factors of a batch, on the rows' device and in their precision.

    Args:
        rows: the factors of each row's adapter set.
        most: largest rank that an engine accepts; no row has more.
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


def _updates(name: str, terms: Sequence[Term]) -> list[tuple[LowRank, float]]:
    return [(updates[name].low_rank(), weight) for updates, weight in terms if name in updates]


def _put(
    slot: Slot, updates: Sequence[tuple[LowRank, float]], down: torch.Tensor, up: torch.Tensor
) -> None:
    """Write a layer's updates into the stacks, one after the other along the rank."""
    start = 0
    for update, weight in updates:
        ranks = slice(start, start + update.rank)
        inner = update.down.float()
        if inner.ndim == 4:
            inner = inner.permute(0, 2, 3, 1)  # channels fastest
        down[ranks, slot.down] = inner.flatten(1)
        up[ranks, slot.up] = update.up.float().flatten(1).T * (weight * update.scale)
        start += update.rank

"""Base weights + updates -> weights, into a network's engines and out again.

Merged weights replace the base's for as long as an adapter set is active; whatever is not touched
by the next set gets its base weight back, so a switch leaves no residue.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from tessera.adapters.formats import Update
from tessera.adapters.lru import ByteLru
from tessera.adapters.store import Adapter
from tessera.engines.base import Engine
from tessera.plan import AdapterUse

CHUNK_BYTES = 2**32
"""Weights go into an engine by this much at a time, since an engine may have to be opened again for
each time."""

AdapterSet: TypeAlias = tuple[AdapterUse, ...]
"""What is merged; the empty set is the base."""
BASE: AdapterSet = ()
Weights = dict[str, torch.Tensor]
Term = tuple[Update, float]
Terms = dict[str, list[Term]]
"""By name of the weight: what is added to it, and how much of it."""


@dataclass
class Patchable:
    """An engine whose weights can be replaced.

    Attributes:
        engine: runs one graph.
        names: weights of the graph that updates may change.
        base: name -> the checkpoint's weight, float32.
        dirty: weights in the engine that may not be the base's.
    """

    engine: Engine
    names: frozenset[str]
    base: Callable[[str], torch.Tensor]
    dirty: set[str] = field(default_factory=set)


class Patcher:
    """Puts adapter sets into one network.

    Args:
        part: the network, as LoRA files name it.
        patchables: its engines; one weight may be in several.
        budget: bytes of merged weights to keep for the next time.
        threads: of the merging; 0 is one per core.

    Attributes:
        active: the set that is in; `None` if putting one in has failed.
        switches: how often another set was put in.
        refit_ms: time that took, in all.
    """

    def __init__(
        self, part: str, patchables: Sequence[Patchable], *, budget: int, threads: int = 0
    ) -> None:
        self._part, self._patchables = part, tuple(patchables)
        self._threads = threads or len(os.sched_getaffinity(0))
        self._base: dict[tuple[int, str], torch.Tensor] = {}
        self._merged: ByteLru[AdapterSet, list[Weights]] = ByteLru(budget)
        self._budget = budget
        self.active: AdapterSet | None = BASE
        self.switches = 0
        self.refit_ms = 0.0

    def apply(self, wanted: AdapterSet, load: Callable[[AdapterUse], Adapter]) -> float:
        """Make the network that of an adapter set; returns the milliseconds it took.

        Args:
            wanted: the set.
            load: gives the LoRA of one of its elements; not called for a set whose merged weights
                are at hand.

        Raises:
            TesseraError: of `load`, in which case nothing has changed, or of an engine, after which
                every weight in doubt is replaced the next time.
        """
        if wanted == self.active:
            return 0.0
        began = time.perf_counter()
        kept = self._merged.get(wanted)
        terms = {} if kept is not None else _terms(self._part, [(load(u), u) for u in wanted])
        with _threads(self._threads), torch.inference_mode():
            self.active = None
            if kept is None and self._worth_keeping(terms):
                kept = [dict(self._merge(i, terms)) for i in range(len(self._patchables))]
                size = sum(w.nbytes for weights in kept for w in weights.values())
                self._merged.put(wanted, kept, size)
            for index, patchable in enumerate(self._patchables):
                merged = kept[index].items() if kept is not None else self._merge(index, terms)
                self._refit(index, patchable, merged)
            self.active = wanted
        elapsed = 1e3 * (time.perf_counter() - began)
        self.switches += 1
        self.refit_ms += elapsed
        return elapsed

    def _refit(
        self, index: int, patchable: Patchable, merged: Iterable[tuple[str, torch.Tensor]]
    ) -> None:
        before, touched = set(patchable.dirty), set[str]()

        def weights() -> Iterator[tuple[str, torch.Tensor]]:
            for name, weight in merged:
                touched.add(name)
                yield name, weight
            for name in sorted(before - touched):
                yield name, self._base_of(index, name)

        for chunk in _chunks(weights()):
            patchable.dirty |= chunk.keys()
            patchable.engine.refit(chunk)
        patchable.dirty = touched

    def _merge(self, index: int, terms: Terms) -> Iterator[tuple[str, torch.Tensor]]:
        for name in sorted(terms.keys() & self._patchables[index].names):
            yield name, merge(self._base_of(index, name), terms[name])

    def _base_of(self, index: int, name: str) -> torch.Tensor:
        if (index, name) not in self._base:
            self._base[index, name] = self._patchables[index].base(name)
        return self._base[index, name]

    def _worth_keeping(self, terms: Terms) -> bool:
        sizes = (
            4 * math.prod(terms[name][0][0].shape)
            for patchable in self._patchables
            for name in terms.keys() & patchable.names
        )
        return bool(terms) and sum(sizes) <= self._budget


def merge(base: torch.Tensor, terms: Sequence[Term]) -> torch.Tensor:
    """`base + sum(weight * scale * up @ down)`, each product of its own LoRA only, in float32.

    The result lies in memory as `base` does, row by row or column by column, so that an engine
    that keeps a weight transposed need not turn it round.
    """
    up = torch.cat([u.up.float().flatten(1) * (weight * u.scale) for u, weight in terms], 1)
    down = torch.cat([u.down.float().flatten(1) for u, _ in terms])
    if base.ndim == 2 and base.T.is_contiguous():
        return torch.addmm(base.T, down.T, up.T).T
    return torch.addmm(base.reshape(len(up), -1), up, down).view(base.shape)


def _terms(part: str, chosen: Sequence[tuple[Adapter, AdapterUse]]) -> Terms:
    terms: Terms = {}
    for adapter, use in chosen:
        for name, update in adapter.updates.get(part, {}).items():
            terms.setdefault(name, []).append((update, use.weight))
    return terms


def _chunks(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Weights]:
    chunk: Weights = {}
    for name, weight in weights:
        chunk[name] = weight
        if sum(w.nbytes for w in chunk.values()) >= CHUNK_BYTES:
            yield chunk
            chunk = {}
    if chunk:
        yield chunk


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch with that many threads: engines of other kinds have left it with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Base weights + updates -> weights, into a network's engines and out again.

Merged weights replace the base's for as long as an adapter set is current; whatever is not touched
by the next set gets its base weight back, so a switch leaves no residue.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch

from tessera.adapters.formats import Update
from tessera.adapters.lru import ByteLru
from tessera.adapters.store import Adapter
from tessera.engines.base import Engine
from tessera.plan import AdapterUse

CHUNK_BYTES = 2**24
"""Weights go into an engine by about this much at a time."""

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
        current: the set that is in; `None` if putting one in has failed.
        switches: how often another set was put in.
        refit_ms: time that took, in all.
    """

    def __init__(
        self, part: str, patchables: Sequence[Patchable], *, budget: int, threads: int = 0
    ) -> None:
        self._part = part
        self._patchables = tuple(patchables)
        self._threads = threads or len(os.sched_getaffinity(0))
        self._base: dict[tuple[int, str], torch.Tensor] = {}
        self._merged: ByteLru[AdapterSet, list[Weights]] = ByteLru(budget)
        self._budget = budget
        self._scratch = _Scratch()
        self.current: AdapterSet | None = BASE
        self.switches = 0
        self.refit_ms = 0.0

    def apply(self, adapter_set: AdapterSet, load: Callable[[AdapterUse], Adapter]) -> float:
        """Make the network that of an adapter set; returns the milliseconds it took.

        Args:
            adapter_set: the set.
            load: gives the LoRA of one of its elements; not called for a set whose merged weights
                are at hand.

        Raises:
            TesseraError: of `load`, in which case nothing has changed, or of an engine, after which
                every weight in doubt is replaced the next time.
        """
        if adapter_set == self.current:
            return 0.0
        began = time.perf_counter()
        kept = self._merged.get(adapter_set)
        terms = {} if kept is not None else _terms(self._part, [(load(u), u) for u in adapter_set])
        with _threads(self._threads), torch.inference_mode():
            self.current = None
            if kept is None and self._worth_keeping(terms):
                kept = [self._merge_all(i, terms) for i in range(len(self._patchables))]
                size = sum(w.nbytes for weights in kept for w in weights.values())
                self._merged.put(adapter_set, kept, size)
            for index, patchable in enumerate(self._patchables):
                names = terms.keys() & patchable.names if kept is None else kept[index].keys()
                merged = (
                    partial(self._merged_weight, index, terms)
                    if kept is None
                    else kept[index].__getitem__
                )
                self._refit(index, set(names), merged)
            self.current = adapter_set
        elapsed = 1e3 * (time.perf_counter() - began)
        self.switches += 1
        self.refit_ms += elapsed
        return elapsed

    def _refit(self, index: int, touched: set[str], merged: Callable[[str], torch.Tensor]) -> None:
        """Put merged weights in, and base weights where the last set's still are."""
        patchable = self._patchables[index]

        def weights() -> Iterator[tuple[str, torch.Tensor]]:
            names = touched | patchable.dirty
            for name in sorted(names, key=lambda n: (_many_points(self._base_of(index, n)), n)):
                yield name, merged(name) if name in touched else self._base_of(index, name)

        for chunk in _chunks(weights()):
            patchable.dirty |= chunk.keys()
            patchable.engine.refit(chunk)
            self._scratch.reuse()
        patchable.dirty = touched

    def _merged_weight(self, index: int, terms: Terms, name: str) -> torch.Tensor:
        base = self._base_of(index, name)
        return merge(base, terms[name], self._scratch.like(base))

    def _merge_all(self, index: int, terms: Terms) -> Weights:
        names = terms.keys() & self._patchables[index].names
        return {n: merge(self._base_of(index, n), terms[n]) for n in names}

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


def merge(
    base: torch.Tensor, terms: Sequence[Term], out: torch.Tensor | None = None
) -> torch.Tensor:
    """`base + sum(weight * scale * up @ down)`, each product of its own LoRA only, in float32.

    The result lies in memory as `base` does, row by row or column by column, so that an engine
    that keeps a weight transposed need not turn it round. `out` is a tensor like `base` to put it
    in.
    """
    up = torch.cat([u.up.float().flatten(1) * (weight * u.scale) for u, weight in terms], 1)
    down = torch.cat([u.down.float().flatten(1) for u, _ in terms])
    out = torch.empty_like(base) if out is None else out
    if _is_transposed(base):
        torch.addmm(base.T, down.T, up.T, out=out.T)
    else:
        torch.addmm(base.reshape(len(up), -1), up, down, out=out.view(len(up), -1))
    return out


class _Scratch:
    """Buffers for merged weights that an engine copies at once: fresh memory would cost more than
    the merging.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._used = 0

    def like(self, weight: torch.Tensor) -> torch.Tensor:
        """A tensor of the weight's shape and strides, until `reuse`."""
        if self._used == len(self._buffers):
            self._buffers.append(torch.empty(0))
        if self._buffers[self._used].numel() < weight.numel():
            self._buffers[self._used] = torch.empty(weight.numel())
        buffer = self._buffers[self._used][: weight.numel()]
        self._used += 1
        return (
            buffer.view(weight.T.shape).T if _is_transposed(weight) else buffer.view(weight.shape)
        )

    def reuse(self) -> None:
        """What was given out may be overwritten."""
        self._used = 0


def _is_transposed(weight: torch.Tensor) -> bool:
    return weight.ndim == 2 and not weight.is_contiguous() and weight.T.is_contiguous()


def _many_points(weight: torch.Tensor) -> bool:
    """Whether it is of a convolution of more than one point."""
    return weight.ndim == 4 and weight[0, 0].numel() > 1


def _terms(part: str, chosen: Sequence[tuple[Adapter, AdapterUse]]) -> Terms:
    terms: Terms = {}
    for adapter, use in chosen:
        for name, update in adapter.updates.get(part, {}).items():
            terms.setdefault(name, []).append((update, use.weight))
    return terms


def _chunks(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Weights]:
    """Small ones, so that what is merged is still in the processor's cache when it is copied; but
    convolutions all at once, since an engine may have to be opened again for them.
    """
    chunk: Weights = {}
    for name, weight in weights:
        chunk[name] = weight
        if sum(w.nbytes for w in chunk.values()) >= CHUNK_BYTES and not _many_points(weight):
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

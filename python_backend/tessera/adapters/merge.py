"""Merges updates into base weights and puts the result into a network's engines.

Merged weights are in the engine while an adapter set is current. The next set restores the base of
every weight that it does not change itself, so a switch leaves no residue. Knows engines and
adapters, nothing of requests.
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

from tessera.adapters.lru import ByteLru
from tessera.adapters.store import Adapter
from tessera.adapters.updates import LowRank, Update
from tessera.engines.base import Refittable
from tessera.errors import InvalidInput
from tessera.plan import AdapterUse

CHUNK_BYTES = 2**24
"""Weights are put into an engine in chunks of about this size."""

_EMBEDDINGS = ("token_embedding.weight", "position_embedding.weight")

AdapterSet: TypeAlias = tuple[AdapterUse, ...]
"""The adapter uses of one request in one network. The empty set is the base."""
BASE: AdapterSet = ()
Weights = dict[str, torch.Tensor]
Term = tuple[Update, float]
Terms = dict[str, list[Term]]
"""By name of the weight: the updates that are added to it, each with the adapter's weight."""


@dataclass
class Patchable:
    """An engine whose weights can be replaced.

    Attributes:
        engine: the engine of one graph.
        names: weights of the graph that updates may change.
        base: name -> the checkpoint's weight, in the precision in which it is stored.
        stored: whether the graph has a weight of a name. The others have no effect, such as those
            of a text encoder's last layers where an earlier one's output is used.
        dirty: names of weights in the engine that may differ from the base.
    """

    engine: Refittable
    names: frozenset[str]
    base: Callable[[str], torch.Tensor]
    stored: Callable[[str], bool] = lambda name: False
    dirty: set[str] = field(default_factory=set)


class Patcher:
    """Puts adapter sets into one network.

    Args:
        part: the network's name in LoRA files.
        patchables: its engines. A weight may be in several of them.
        budget: bytes of merged weights to keep for reuse.
        threads: number of threads for merging; 0 means one per core.

    Attributes:
        current: the set that is in the engines; `None` after a failed switch.
        switches: number of switches.
        refit_ms: total milliseconds of all switches.
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
        """Switch the engines to an adapter set; returns the milliseconds it took.

        Args:
            adapter_set: the set.
            load: loads the adapter of an adapter use. Not called if the set's merged weights are
                kept.

        Raises:
            InvalidInput: an engine cannot replace a weight. Nothing has changed.
            TesseraError: from `load`: nothing has changed. From an engine: the next switch replaces
                every weight that may be wrong.
        """
        if adapter_set == self.current:
            return 0.0
        began = time.perf_counter()
        kept = self._merged.get(adapter_set)
        terms = {} if kept is not None else _terms(self._part, [(load(u), u) for u in adapter_set])
        self._check(terms)
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

    @property
    def kept(self) -> list[AdapterSet]:
        """Sets whose merged weights are kept for reuse."""
        return [adapter_set for adapter_set, _ in self._merged.items()]

    def _check(self, terms: Terms) -> None:
        """Check that no engine has a weight of the terms that it cannot replace."""
        for name in sorted(terms.keys() - {n for p in self._patchables for n in p.names}):
            fixed = next((p.engine for p in self._patchables if p.stored(name)), None)
            if fixed is not None:
                raise InvalidInput.described(
                    "LORAS",
                    f"change {self._part}.{name}",
                    f"weights that an engine of kind {fixed.describe().kind} can replace",
                )

    def _refit(self, index: int, touched: set[str], merged: Callable[[str], torch.Tensor]) -> None:
        """Put merged weights into an engine, and base weights where the last set's remain."""
        patchable = self._patchables[index]

        def weights() -> Iterator[tuple[str, torch.Tensor]]:
            names = touched | patchable.dirty
            for name in sorted(names, key=lambda n: (_reopens(n, self._base_of(index, n)), n)):
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
    """The base and what the updates add to it, in float32 whatever the base is. The plain low-rank
    ones are one product.

    The result has the memory order of `base`, by rows or by columns. So an engine that keeps a
    weight transposed does not have to transpose it.

    Args:
        base: the checkpoint's weight.
        terms: updates and the weights of their adapters.
        out: a float32 tensor like `base` for the result; allocated if missing.
    """
    base = base.float()
    out = torch.empty_like(base) if out is None else out
    plain = [(u, weight) for u, weight in terms if isinstance(u, LowRank)]
    if plain:
        _add_products(base, plain, out)
    else:
        out.copy_(base)
    for update, weight in terms:
        if not isinstance(update, LowRank):
            out += update.delta(base, weight)
    return out


def _add_products(
    base: torch.Tensor, terms: Sequence[tuple[LowRank, float]], out: torch.Tensor
) -> None:
    """`out = base + sum(weight * scale * up @ down)`."""
    up = torch.cat([u.up.float().flatten(1) * (weight * u.scale) for u, weight in terms], 1)
    down = torch.cat([u.down.float().flatten(1) for u, _ in terms])
    if _is_transposed(base):
        torch.addmm(base.T, down.T, up.T, out=out.T)
    else:
        torch.addmm(base.reshape(len(up), -1), up, down, out=out.view(len(up), -1))


class _Scratch:
    """Buffers for merged weights, which an engine copies immediately. Allocating new memory would
    cost more than merging.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._used = 0

    def like(self, weight: torch.Tensor) -> torch.Tensor:
        """A tensor with the weight's shape and strides, valid until `reuse`."""
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
        """Allow all buffers to be overwritten."""
        self._used = 0


def _is_transposed(weight: torch.Tensor) -> bool:
    return weight.ndim == 2 and not weight.is_contiguous() and weight.T.is_contiguous()


def _reopens(name: str, weight: torch.Tensor) -> bool:
    """Whether an engine may have to be opened again for a weight: that of a convolution of more
    than one point, a bias, norm or embedding.
    """
    if weight.ndim == 4:
        return weight[0, 0].numel() > 1
    return weight.ndim != 2 or name.endswith(_EMBEDDINGS)


def _terms(part: str, adapters: Sequence[tuple[Adapter, AdapterUse]]) -> Terms:
    terms: Terms = {}
    for adapter, use in adapters:
        for name, update in adapter.updates.get(part, {}).items():
            terms.setdefault(name, []).append((update, use.weight))
    return terms


def _chunks(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Weights]:
    """Split weights into small chunks, so that merged weights are still in the processor's cache
    when they are copied. Those for which an engine may have to be opened again stay in one chunk.
    """
    chunk: Weights = {}
    for name, weight in weights:
        chunk[name] = weight
        if sum(w.nbytes for w in chunk.values()) >= CHUNK_BYTES and not _reopens(name, weight):
            yield chunk
            chunk = {}
    if chunk:
        yield chunk


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch with `count` threads: engines of other kinds have set it to one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""The inputs of one `unet_sparse` call, from the masks and caches of several requests.

A *part* is one mask with one set of cached values. One or more branches of the call use it: two if
both branches of a guided request share their cache. `Batch.fixed` makes the inputs that depend only
on the masks, once. `Batch.cached` gathers the rows that a step needs.

Knows tensors, nothing of requests or stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tessera.networks.program import Program, Site
from tessera.sparse.tables import Ints, Tables
from tessera.types import Tensors


class Cache(Protocol):
    """The recorded values of one part at one step."""

    def whole(self, site: Site) -> torch.Tensor:
        """All values of a site, of shape `Site.shape`.

        Keys and values of active tokens are not used: they may be any finite numbers.
        """
        ...

    def rows(self, site: Site, index: torch.Tensor, out: torch.Tensor) -> None:
        """Write a site's rows for the tokens `index` into `out` (rows, ...)."""
        ...


@dataclass(frozen=True)
class ArrayCache:
    """A cache from one row of a recording in memory.

    Attributes:
        arrays: what `record` returns: arrays by site name.
        row: which row of the arrays to use.
    """

    arrays: Mapping[str, torch.Tensor]
    row: int = 0

    def whole(self, site: Site) -> torch.Tensor:
        """See `Cache.whole`."""
        return self.arrays[site.name][self.row]

    def rows(self, site: Site, index: torch.Tensor, out: torch.Tensor) -> None:
        """See `Cache.rows`."""
        array = self.whole(site)
        if array.dtype == out.dtype:
            torch.index_select(array, 0, index, out=out)
        else:
            out.copy_(array.index_select(0, index))


@dataclass(frozen=True)
class Part:
    """One mask with one cache.

    Attributes:
        tables: index tables of the mask.
        branches: how many branches of the call use this part.
        live_norms: whether GroupNorm statistics include the computed rows (needs the `norm_rows`
            sites). Otherwise the template's statistics are used.
    """

    tables: Tables
    branches: int = 1
    live_norms: bool = True


@dataclass(frozen=True)
class Batch:
    """Requests of one latent size that share a call.

    Attributes:
        program: the UNet's program.
        parts: the masks. Branches follow in the same order.
    """

    program: Program
    parts: Sequence[Part]
    _needed: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of one branch, per level: the largest number of active tokens of any part."""
        levels = range(self.program.levels)
        return tuple(max(p.tables.levels[i].count for p in self.parts) for i in levels)

    @cached_property
    def branches(self) -> Ints:
        """The index of each branch's part."""
        return np.repeat(np.arange(len(self.parts)), [p.branches for p in self.parts])

    @property
    def padding(self) -> float:
        """Share of the latents' rows that are padding."""
        used = sum(p.branches * p.tables.levels[0].count for p in self.parts)
        return 1 - used / (self.counts[0] * len(self.branches))

    @cached_property
    def fixed(self) -> Tensors:
        """The inputs that are the same in every step."""
        fixed: dict[str, npt.NDArray[Any]] = {"part": self.branches}
        for level in range(self.program.levels):
            fixed[f"share_{level}"] = self._shares(level)
            fixed[f"tokens_{level}"] = self._per_branch(
                [p.tables.levels[level].tokens for p in self.parts]
            )
            fixed[f"same_{level}"] = self._joined(f"same_{level}", level, level)
        for level in range(self.program.levels - 1):
            fixed[f"down_{level}"] = self._joined(f"down_{level}", level, level + 1)
            fixed[f"up_{level}"] = self._joined(f"up_{level}", level + 1, level)
        attending = {level for _, level in self.program.attentions}
        unused = {f"tokens_{level}" for level in range(self.program.levels)} - {
            f"tokens_{n}" for n in attending
        }
        inputs = {
            name: torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.int32))
            for name, array in fixed.items()
            if name not in unused
        }
        return inputs | self.residuals(None)

    def sample(self, latents: torch.Tensor) -> Tensors:
        """The input `sample` and the halo of the first convolution.

        Args:
            latents: the network's whole input (branches, channels, height, width), with the
                template's latents outside the masks.
        """
        maps = latents.flatten(2).transpose(1, 2)  # (branches, tokens, channels)
        active = self._live_tokens[0]
        rows = torch.stack([m[t] for m, t in zip(maps, active, strict=True)])
        first = [int(n) for n in np.flatnonzero(np.diff(self.branches, prepend=-1))]
        near = [maps[b][self._index(i, "same_0")] for i, b in enumerate(first)]
        zero = maps.new_zeros(1, maps.shape[2])
        return {"sample": rows, "halo.conv_in": torch.cat([zero, *near])}

    def residuals(self, maps: Sequence[torch.Tensor] | None) -> Tensors:
        """The residuals of ControlNets for the active tokens, by name of the input.

        Args:
            maps: (branches, c, h, w) for each of `Program.residuals`, in its order. Without it,
                each input is a single row of zeros.
        """
        places = self.program.residuals
        if maps is None:
            return {name: torch.zeros(1, width) for name, (_, width) in places.items()}
        residuals = {}
        for (name, (level, width)), whole in zip(places.items(), maps, strict=True):
            tokens = self._live_tokens[level][:, None].expand(-1, width, -1)
            rows = whole.flatten(2).gather(2, tokens)  # (branches, c, n)
            residuals[name] = rows.transpose(1, 2).reshape(-1, width)
        return residuals

    def scatter(self, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Copy `latents` (branches, channels, height, width) and replace the active ones by
        `prediction` (branches, n_0, channels).
        """
        out = latents.clone()
        maps = out.view(*out.shape[:2], -1)
        for branch, tokens in enumerate(self._live_tokens[0]):
            count = self.parts[self.branches[branch]].tables.levels[0].count
            maps[branch, :, tokens[:count]] = prediction[branch, :count].T.to(out.dtype)
        return out

    def cached(
        self,
        caches: Sequence[Cache],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensors:
        """The inputs of one step that come from the caches.

        Args:
            caches: one for each part.
            dtype: type of the halo rows.
            device: where the halo rows and norms are put.
        """
        inputs = {"norms": self._norms(caches, device)}
        for site in self.program.sites:
            if site.kind == "halo":
                inputs[site.name] = self._halo(site, caches, dtype, device)
            elif site.kind in ("key", "value"):
                whole = [cache.whole(site)[None] for cache in caches]
                inputs[site.name] = whole[0] if len(whole) == 1 else torch.cat(whole)
        return inputs

    @cached_property
    def _live_tokens(self) -> list[torch.Tensor]:
        """Active tokens of each level, (branches, n)."""
        levels = range(self.program.levels)
        tokens = ([p.tables.levels[i].tokens for p in self.parts] for i in levels)
        return [torch.from_numpy(self._per_branch(of_parts)) for of_parts in tokens]

    def _halo(
        self, site: Site, caches: Sequence[Cache], dtype: torch.dtype, device: torch.device | str
    ) -> torch.Tensor:
        indices = [self._index(i, site.table) for i in range(len(caches))]
        rows = torch.empty(1 + sum(map(len, indices)), site.width, dtype=dtype, device=device)
        rows[0] = 0
        start = 1
        for cache, index in zip(caches, indices, strict=True):
            cache.rows(site, index, rows[start : start + len(index)])
            start += len(index)
        return rows

    def _norms(self, caches: Sequence[Cache], device: torch.device | str) -> torch.Tensor:
        """(branches, norms, 2, groups): the cached part of the GroupNorm statistics."""
        statistics = {s.module: s for s in self.program.sites if s.kind == "norm"}
        shares = {s.module: s for s in self.program.sites if s.kind == "norm_rows"}
        of_parts = []
        for i, (part, cache) in enumerate(zip(self.parts, caches, strict=True)):
            per_norm = []
            for name in self.program.norms:
                value = cache.whole(statistics[name]).float().to(device)
                if part.live_norms:
                    value = value - self._live_share(i, shares[name], cache, device)
                per_norm.append(value)
            of_parts.append(torch.stack(per_norm))
        return torch.stack([of_parts[i] for i in self.branches])

    def _live_share(
        self, part: int, site: Site, cache: Cache, device: torch.device | str
    ) -> torch.Tensor:
        """The share of a norm's statistics that comes from the template's active tokens."""
        level = self.parts[part].tables.levels[site.level]
        index = self._tokens(part, site.level)
        rows = torch.empty(len(index), 2, site.width // 2, device=device)
        cache.rows(site, index, rows)
        return torch.stack([rows[:, 0].sum(0), rows[:, 1].square().sum(0)]) / level.total

    def _index(self, part: int, table: str) -> torch.Tensor:
        key = (part, table)
        if key not in self._needed:
            self._needed[key] = torch.from_numpy(self.parts[part].tables[table].halo)
        return self._needed[key]

    def _tokens(self, part: int, level: int) -> torch.Tensor:
        key = (part, f"tokens_{level}")
        if key not in self._needed:
            self._needed[key] = torch.from_numpy(self.parts[part].tables.levels[level].tokens)
        return self._needed[key]

    def _per_branch(self, arrays: Sequence[npt.NDArray[np.int64]]) -> Ints:
        """(branches, longest, ...): each part's array, padded by repeating its last row."""
        longest = max(map(len, arrays))
        padded = [np.concatenate([a, np.repeat(a[-1:], longest - len(a), 0)]) for a in arrays]
        return np.stack([padded[i] for i in self.branches])

    def _shares(self, level: int) -> npt.NDArray[np.float32]:
        """Weight of each row in the means of norms (branches, n).

        It is zero for padding, and for parts that use the template's statistics.
        """
        shares = np.zeros((len(self.branches), self.counts[level]), np.float32)
        for branch, part in enumerate(self.branches):
            entry = self.parts[part].tables.levels[level]
            if self.parts[part].live_norms:
                shares[branch, : entry.count] = 1 / entry.total
        return shares

    def _joined(self, name: str, source: int, output: int) -> Ints:
        """One table for all branches: (branches, n, 9), indices into [zero; halos of all parts;
        live rows of all branches].

        A part's table points into [zero; its halo; its live rows]. The shared call puts the halos
        of all parts first and the live rows of all branches after them. So every index has to be
        shifted. Halo indices move by the size of the earlier parts' halos. Live indices move to
        this branch's rows, after all halos. Branches of one part share its halo but never its live
        rows.
        """
        tables = [part.tables[name] for part in self.parts]
        sizes = [len(t.halo) for t in tables]
        before = np.cumsum([0, *sizes])
        joined = self._per_branch([t.index for t in tables])
        for branch, part in enumerate(self.branches):
            index, halo_size = joined[branch], sizes[part]
            live = index - halo_size + before[-1] + branch * self.counts[source]
            near = index + before[part]
            joined[branch] = np.where(index > halo_size, live, np.where(index > 0, near, 0))
        return joined

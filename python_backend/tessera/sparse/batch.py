"""The inputs of one call of `unet_sparse`, made of several requests' masks and caches.

A *part* is one mask with one set of cached values; one or more branches of the call use it (two if
both branches of a request with guidance share their cache). What follows from the masks alone is
made once, `Batch.fixed`; the rows that a step needs are gathered by `Batch.cached`.
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
        """All of a site (`Site.shape`); rows of active tokens of keys and values may hold
        anything finite.
        """
        ...

    def rows(self, site: Site, index: torch.Tensor, out: torch.Tensor) -> None:
        """Write a site's rows of the tokens `index` into `out` (rows, ...)."""
        ...


@dataclass(frozen=True)
class ArrayCache:
    """One row of a recording that lies in memory.

    Attributes:
        arrays: by name of the site, as `record` makes them.
        row: which of their rows.
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
        tables: of the mask.
        branches: how many branches of the call use it.
        live_norms: whether GroupNorm statistics take in the rows that are computed (needs the
            `norm_rows` sites); else they are the template's.
    """

    tables: Tables
    branches: int = 1
    live_norms: bool = True


@dataclass(frozen=True)
class Batch:
    """Requests of one latent size that share a call.

    Attributes:
        program: of the UNet.
        parts: the masks; branches follow in their order.
    """

    program: Program
    parts: Sequence[Part]
    _needed: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of one branch per level: the most active tokens that any part has."""
        levels = range(self.program.levels)
        return tuple(max(p.tables.levels[i].count for p in self.parts) for i in levels)

    @cached_property
    def branches(self) -> Ints:
        """The part of each branch."""
        return np.repeat(np.arange(len(self.parts)), [p.branches for p in self.parts])

    @property
    def padding(self) -> float:
        """Share of the latents' rows that are padding."""
        used = sum(p.branches * p.tables.levels[0].count for p in self.parts)
        return 1 - used / (self.counts[0] * len(self.branches))

    @cached_property
    def fixed(self) -> Tensors:
        """The inputs that stay the same from step to step."""
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
        given = {
            name: torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.int32))
            for name, array in fixed.items()
            if name not in unused
        }
        return given | self.residuals(None)

    def sample(self, latents: torch.Tensor) -> Tensors:
        """`sample` and the halo of the first convolution.

        Args:
            latents: the network's whole input (branches, channels, height, width), the template's
                latents outside the masks.
        """
        maps = latents.flatten(2).transpose(1, 2)  # (branches, tokens, channels)
        chosen = self._live_tokens[0]
        rows = torch.stack([m[t] for m, t in zip(maps, chosen, strict=True)])
        first = [int(n) for n in np.flatnonzero(np.diff(self.branches, prepend=-1))]
        near = [maps[b][self._index(i, "same_0")] for i, b in enumerate(first)]
        zero = maps.new_zeros(1, maps.shape[2])
        return {"sample": rows, "halo.conv_in": torch.cat([zero, *near])}

    def residuals(self, maps: Sequence[torch.Tensor] | None) -> Tensors:
        """What ControlNets add to the rows: of each level's active tokens; a row of zeros where
        there is none.

        Args:
            maps: (branches, c, h, w) for each of `Program.residuals`, in its order.
        """
        places = self.program.residuals
        if maps is None:
            return {name: torch.zeros(1, width) for name, (_, width) in places.items()}
        found = {}
        for (name, (level, width)), whole in zip(places.items(), maps, strict=True):
            tokens = self._live_tokens[level][:, None].expand(-1, width, -1)
            rows = whole.flatten(2).gather(2, tokens)  # (branches, c, n)
            found[name] = rows.transpose(1, 2).reshape(-1, width)
        return found

    def scatter(self, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """`latents` (branches, channels, height, width) with the active ones replaced by
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
        """The inputs that one step needs from the caches, one per part."""
        made = {"norms": self._norms(caches, device)}
        for site in self.program.sites:
            if site.kind == "halo":
                made[site.name] = self._halo(site, caches, dtype, device)
            elif site.kind in ("key", "value"):
                whole = [cache.whole(site)[None] for cache in caches]
                made[site.name] = whole[0] if len(whole) == 1 else torch.cat(whole)
        return made

    @cached_property
    def _live_tokens(self) -> list[torch.Tensor]:
        """By level, (branches, n) each."""
        levels = range(self.program.levels)
        tokens = ([p.tables.levels[i].tokens for p in self.parts] for i in levels)
        return [torch.from_numpy(self._per_branch(own)) for own in tokens]

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
        """(branches, norms, 2, groups): the statistics' cached part."""
        statistics = {s.module: s for s in self.program.sites if s.kind == "norm"}
        shares = {s.module: s for s in self.program.sites if s.kind == "norm_rows"}
        found = []
        for i, (part, cache) in enumerate(zip(self.parts, caches, strict=True)):
            per_norm = []
            for name in self.program.norms:
                value = cache.whole(statistics[name]).float().to(device)
                if part.live_norms:
                    value = value - self._live_share(i, shares[name], cache, device)
                per_norm.append(value)
            found.append(torch.stack(per_norm))
        return torch.stack([found[i] for i in self.branches])

    def _live_share(
        self, part: int, site: Site, cache: Cache, device: torch.device | str
    ) -> torch.Tensor:
        """What the template's own active tokens contribute to a norm's statistics."""
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
        """(branches, longest, ...): each part's array, its last row repeated."""
        longest = max(map(len, arrays))
        padded = [np.concatenate([a, np.repeat(a[-1:], longest - len(a), 0)]) for a in arrays]
        return np.stack([padded[i] for i in self.branches])

    def _shares(self, level: int) -> npt.NDArray[np.float32]:
        """Weight of each row in the means of norms: none for padding, nor where the statistics are
        the template's.
        """
        shares = np.zeros((len(self.branches), self.counts[level]), np.float32)
        for branch, part in enumerate(self.branches):
            entry = self.parts[part].tables.levels[level]
            if self.parts[part].live_norms:
                shares[branch, : entry.count] = 1 / entry.total
        return shares

    def _joined(self, name: str, source: int, output: int) -> Ints:
        """One table for all branches: (branches, n, 9) into [zero; halos of all parts; live rows of
        all branches].

        A part's own table points into [zero; its halo; its live rows]. In the shared call the halos
        of the other parts lie between, so an entry is moved by what stands before its part: halo
        entries by the halos of earlier parts, live entries to the rows of this very branch behind
        all halos. Branches of one part share its halo but never its live rows.
        """
        tables = [part.tables[name] for part in self.parts]
        sizes = [len(t.halo) for t in tables]
        before = np.cumsum([0, *sizes])
        joined = self._per_branch([t.index for t in tables])
        for branch, part in enumerate(self.branches):
            index, own = joined[branch], sizes[part]
            live = index - own + before[-1] + branch * self.counts[source]
            near = index + before[part]
            joined[branch] = np.where(index > own, live, np.where(index > 0, near, 0))
        return joined

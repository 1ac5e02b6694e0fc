"""Index tables: where each active token finds its nine neighbours.

A mask of latents decides which tokens of every level are active. Every 3x3 convolution of the UNet,
with any stride or upsampling, then gathers nine rows per active token. It gathers them from [a zero
row; halo rows; live rows] of its source level. Knows numpy, nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Size = tuple[int, int]


@dataclass(frozen=True)
class Level:
    """The tokens of one resolution.

    Attributes:
        size: height and width.
        tokens: indices (row-major) of the active tokens, ascending.
    """

    size: Size
    tokens: Ints

    @property
    def count(self) -> int:
        """Number of active tokens."""
        return len(self.tokens)

    @property
    def total(self) -> int:
        """Number of all tokens."""
        return self.size[0] * self.size[1]

    @cached_property
    def inactive(self) -> Ints:
        """Indices of the inactive tokens."""
        return np.flatnonzero(self.position < 0)

    @cached_property
    def position(self) -> Ints:
        """For each token its position among the active ones, or -1."""
        position = np.full(self.total, -1, np.int64)
        position[self.tokens] = np.arange(self.count)
        return position


@dataclass(frozen=True)
class Table:
    """A 3x3 convolution from one level to another.

    Attributes:
        index: (active tokens of the output level, 9). 0 is the zero row. The halo rows follow,
            then the live rows of the source level.
        halo: indices of the inactive tokens of the source level that are neighbours.
    """

    index: Ints
    halo: Ints


@dataclass(frozen=True)
class Tables:
    """All tables of one mask. Level 0 is the latents.

    Attributes:
        levels: the levels, from fine to coarse.
        same: per level, for convolutions within the level.
        down: per level except the last, to the next coarser level (stride 2).
        up: per level except the last, from the next coarser level, after nearest upsampling.
    """

    levels: tuple[Level, ...]
    same: tuple[Table, ...]
    down: tuple[Table, ...]
    up: tuple[Table, ...]

    @property
    def ratio(self) -> float:
        """Share of the latents that are active."""
        return self.levels[0].count / self.levels[0].total

    def __getitem__(self, name: str) -> Table:
        """A table by its name in the graph: `same_0`, `down_0`, `up_1` ..."""
        kind, _, level = name.partition("_")
        table: Table = getattr(self, kind)[int(level)]
        return table


def make_tables(mask: Mask, paddings: Sequence[int]) -> Tables:
    """The tables of a mask.

    A token of a coarser level is active if upsampling copies it to an active token. For sizes that
    are multiples of 2^levels this is the 2x2 max-pool of the mask.

    Args:
        mask: (height, width) of the latents, true where active.
        paddings: the padding of each downsampler, from fine to coarse: 1, or 0 for one that pads
            only right and bottom.

    Raises:
        ValueError: the mask is not two-dimensional, or nothing in it is active.
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != 2 or not mask.any():
        raise ValueError(
            f"mask has shape {mask.shape} and {mask.sum()} active latents; "
            "accepted: two axes and at least one active latent"
        )
    height, width = mask.shape
    levels = [Level((height, width), np.flatnonzero(mask))]
    for padding in paddings:
        fine = levels[-1]
        levels.append(_coarser(fine, coarse_size(fine.size, padding)))
    pairs = list(zip(levels, levels[1:], paddings, strict=False))
    return Tables(
        levels=tuple(levels),
        same=tuple(_table(level, level, stride=1, first=-1) for level in levels),
        down=tuple(_table(c, f, stride=2, first=-p) for f, c, p in pairs),
        up=tuple(_table(f, c, stride=1, first=-1) for f, c, _ in pairs),
    )


def coarse_size(size: Size, padding: int) -> Size:
    """Size after a 3x3 convolution of stride 2. Padding 0 means one column of zeros at the right
    and one row at the bottom.
    """
    height, width = ((n - 2 + padding) // 2 + 1 for n in size)
    return height, width


def level_sizes(size: Size, paddings: Sequence[int]) -> list[Size]:
    """Sizes of all levels, beginning with the latents."""
    sizes = [size]
    for padding in paddings:
        sizes.append(coarse_size(sizes[-1], padding))
    return sizes


def _coarser(fine: Level, size: Size) -> Level:
    rows, columns = (_nearest(f, c) for f, c in zip(fine.size, size, strict=True))
    y, x = np.divmod(fine.tokens, fine.size[1])
    return Level(size, np.unique(rows[y] * size[1] + columns[x]))


def _nearest(fine: int, coarse: int) -> Ints:
    """For each of `fine` positions, the one of `coarse` positions that upsampling copies there.

    Computed as in torch's `interpolate(mode="nearest")`, in float32.
    """
    scale = np.float32(coarse) / np.float32(fine)
    places = np.floor(np.arange(fine, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(places, coarse - 1)


def _table(output: Level, source: Level, *, stride: int, first: int) -> Table:
    """The table of one convolution.

    Args:
        output: level of the rows that come out.
        source: level of the rows that are gathered.
        stride: 1 or 2. With stride 1, a source of another size is first upsampled to the output's.
        first: offset of the first tap.
    """
    grid = source.size if stride > 1 else output.size
    rows, columns = (_nearest(g, s) for g, s in zip(grid, source.size, strict=True))
    y, x = np.divmod(output.tokens, output.size[1])
    taps = np.arange(first, first + 3)
    ys = y[:, None] * stride + np.repeat(taps, 3)
    xs = x[:, None] * stride + np.tile(taps, 3)
    inside = (ys >= 0) & (ys < grid[0]) & (xs >= 0) & (xs < grid[1])
    tokens = rows[ys.clip(0, grid[0] - 1)] * source.size[1] + columns[xs.clip(0, grid[1] - 1)]
    live = source.position[tokens]
    halo = np.unique(tokens[inside & (live < 0)])
    place = np.zeros(source.total, np.int64)
    place[halo] = 1 + np.arange(len(halo))
    index = np.where(live < 0, place[tokens], 1 + len(halo) + live)
    return Table(np.where(inside, index, 0), halo)

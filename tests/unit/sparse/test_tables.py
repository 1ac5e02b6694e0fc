"""Index tables against brute force: what torch reads from maps of token numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from tessera.sparse.tables import Level, Mask, Table, make_tables

MASKS = hnp.array_shapes(min_dims=2, max_dims=2, min_side=4, max_side=19).flatmap(
    lambda shape: hnp.arrays(bool, shape).filter(lambda mask: bool(mask.any()))
)


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, paddings=st.sampled_from([(1,), (0,), (1, 1), (0, 1)]))
def test_tables_gather_what_dense_convolutions_read(mask: Mask, paddings: tuple[int, ...]) -> None:
    tables = make_tables(mask, paddings)
    for level, same in zip(tables.levels, tables.same, strict=True):
        check(same, level, level, patches(numbers(level), padding=(1, 1, 1, 1), stride=1))
    for i, padding in enumerate(paddings):
        fine, coarse = tables.levels[i], tables.levels[i + 1]
        around = (1, 1, 1, 1) if padding else (0, 1, 0, 1)
        check(tables.down[i], coarse, fine, patches(numbers(fine), padding=around, stride=2))
        grown = functional.interpolate(numbers(coarse), size=fine.size, mode="nearest")
        check(tables.up[i], fine, coarse, patches(grown, padding=(1, 1, 1, 1), stride=1))


@settings(max_examples=60, deadline=None)
@given(mask=MASKS)
def test_sources_of_active_tokens_are_active(mask: Mask) -> None:
    fine, coarse = make_tables(mask, [1]).levels
    grown = functional.interpolate(numbers(coarse), size=fine.size, mode="nearest").flatten()
    sources = grown[torch.from_numpy(fine.tokens)].long() - 1
    assert sorted(set(sources.tolist())) == coarse.tokens.tolist()


def test_coarser_levels_are_the_max_pool() -> None:
    mask = np.random.default_rng(0).random((32, 48)) < 0.02
    levels = make_tables(mask, [1, 1, 1]).levels
    for i, level in enumerate(levels):
        pooled = functional.max_pool2d(torch.from_numpy(mask)[None].float(), 2**i).flatten()
        assert level.tokens.tolist() == pooled.nonzero().flatten().tolist()
        assert level.size == (32 >> i, 48 >> i)


def test_sizes_follow_the_convolutions() -> None:
    for size in range(3, 40):
        line = torch.zeros(1, 1, size, size)
        weight = torch.zeros(1, 1, 3, 3)
        mask = np.ones((size, size), bool)
        ones = functional.conv2d(line, weight, stride=2, padding=1).shape[2:]
        assert make_tables(mask, [1]).levels[1].size == tuple(ones)
        right = functional.conv2d(functional.pad(line, (0, 1, 0, 1)), weight, stride=2).shape[2:]
        assert make_tables(mask, [0]).levels[1].size == tuple(right)


@pytest.mark.parametrize("mask", [np.zeros((8, 8), bool), np.ones(8, bool)], ids=["empty", "flat"])
def test_a_mask_without_active_latents_is_refused(mask: Mask) -> None:
    with pytest.raises(ValueError, match="active latent"):
        make_tables(mask, [1])


def numbers(level: Level) -> torch.Tensor:
    """A map that holds at each token its number plus one, so that zero is padding."""
    return 1 + torch.arange(level.total, dtype=torch.float32).view(1, 1, *level.size)


def patches(values: torch.Tensor, *, padding: tuple[int, ...], stride: int) -> torch.Tensor:
    """(output tokens, 9) values that a 3x3 convolution reads."""
    return functional.unfold(functional.pad(values, padding), 3, stride=stride)[0].T.long()


def check(table: Table, output: Level, source: Level, expected: torch.Tensor) -> None:
    rows = np.concatenate([[0], 1 + table.halo, 1 + source.tokens])
    np.testing.assert_array_equal(rows[table.index], expected[torch.from_numpy(output.tokens)])
    assert not set(table.halo) & set(source.tokens)
    assert set(1 + np.arange(len(table.halo))) <= set(table.index.flatten())

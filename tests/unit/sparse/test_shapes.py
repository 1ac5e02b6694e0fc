"""Ranges of shapes that plans of the sparse graph are built for."""

from __future__ import annotations

import pytest

from tessera.manifest import Latents
from tessera.networks.sparse_unet import SparseUNet
from tessera_build.examples import example_inputs
from tessera_build.sparse import axes_of, shapes_with, sparse_ranges
from tests.fakes.sparse import MASKS, NAMES, batch_of, mask_of, small_unet

SMALLEST, USUAL, LARGEST, MOST = (12, 10), (16, 16), (24, 26), 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [SMALLEST, USUAL, (17, 13), LARGEST], ids=str)
def test_every_call_lies_within_the_ranges(name: str, size: tuple[int, int]) -> None:
    module = SparseUNet(small_unet(name))
    example = example_inputs(module, Latents(4, 8, 1.0), rows=2, height=12, width=10)
    ranges = sparse_ranges(
        module.program, smallest=SMALLEST, usual=USUAL, largest=LARGEST, most=MOST
    )
    least, likely, most = (shapes_with(axes_of(module), example, r) for r in ranges)
    masks = [mask_of(kind, *size) for kind in MASKS]
    for chosen in (masks, masks[:1]):
        batch = batch_of(small_unet(name), chosen)
        lengths = {"halo.conv_in": 1 + sum(len(p.tables["same_0"].halo) for p in batch.parts)}
        shapes = {n: tuple(v.shape) for n, v in batch.fixed.items()}
        for site in batch.program.sites:
            if site.kind == "halo":
                lengths[site.name] = 1 + sum(len(p.tables[site.table].halo) for p in batch.parts)
        shapes |= {n: (rows, *example[n].shape[1:]) for n, rows in lengths.items()}
        for input_name, shape in shapes.items():
            for low, found, high in zip(least[input_name], shape, most[input_name], strict=True):
                assert low <= found <= high, input_name
    for input_name, shape in likely.items():
        for low, usual, high in zip(least[input_name], shape, most[input_name], strict=True):
            assert 1 <= low <= usual <= high, input_name

"""The token-sparse UNet against diffusers' UNet on the same weights and inputs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tessera.networks import graphs
from tessera.networks.sparse_unet import SparseUNet, TextProjections
from tessera.networks.walk import program_of
from tessera.sparse.batch import ArrayCache, Batch, Part
from tessera.sparse.tables import level_sizes, make_tables
from tests.fakes.sparse import (
    MASKS,
    NAMES,
    batch_of,
    dense_pass,
    largest_difference,
    mask_of,
    random_residuals,
    small_unet,
    sparse_feed,
)
from tests.fakes.true_configs import CONFIGS

every_topology = pytest.mark.parametrize("name", NAMES)


@torch.no_grad()
@every_topology
@pytest.mark.parametrize("live_norms", [True, False], ids=["live", "stale"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 13), (18, 11)], ids=str)
def test_sparse_is_dense_when_the_cache_is_its_own(
    name: str, live_norms: bool, height: int, width: int
) -> None:
    """Masks of all kinds in one call, each branch with its own timestep and text."""
    unet = small_unet(name)
    masks = [mask_of(kind, height, width) for kind in MASKS]
    inputs, recording, answer = dense_pass(unet, rows=len(masks), height=height, width=width)
    batch = batch_of(unet, masks, live_norms=live_norms)
    feed = sparse_feed(unet, inputs, batch, [ArrayCache(recording, i) for i in range(len(masks))])
    prediction = SparseUNet(unet).eval()(*feed.values())
    assert largest_difference(batch, prediction, answer, masks) <= 1e-4


@torch.no_grad()
@every_topology
def test_residuals_of_controlnets_go_in_at_active_tokens(name: str) -> None:
    unet = small_unet(name)
    masks = [mask_of(kind, 9, 13) for kind in ("islands", "pixel", "borders")]
    maps = random_residuals(unet, rows=3, height=9, width=13)
    inputs, recording, answer = dense_pass(unet, rows=3, height=9, width=13, residuals=maps)
    without = dense_pass(unet, rows=3, height=9, width=13)[2]
    assert (answer - without).abs().max() > 0.1
    batch = batch_of(unet, masks)
    feed = sparse_feed(unet, inputs, batch, [ArrayCache(recording, i) for i in range(3)])
    feed |= batch.residuals(maps)
    prediction = SparseUNet(unet).eval()(*feed.values())
    assert largest_difference(batch, prediction, answer, masks) <= 1e-4


@torch.no_grad()
def test_branches_may_share_a_cache() -> None:
    unet, mask = small_unet("demo"), mask_of("islands", 16, 16)
    inputs, recording, answer = dense_pass(unet, rows=1, height=16, width=16)
    batch = Batch(
        program_of(unet), [Part(make_tables(mask, program_of(unet).paddings), branches=2)]
    )
    twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
    feed = sparse_feed(unet, twice, batch, [ArrayCache(recording)])
    assert feed["key.mid_block.attentions.0.transformer_blocks.0.attn1"].shape[0] == 1
    prediction = SparseUNet(unet).eval()(*feed.values())
    both = answer.expand(2, -1, -1, -1)
    assert largest_difference(batch, prediction, both, [mask, mask]) <= 1e-4


@torch.no_grad()
def test_what_lies_at_active_tokens_of_the_cache_does_not_matter() -> None:
    unet, mask = small_unet("sdxl"), mask_of("islands", 16, 16)
    inputs, recording, answer = dense_pass(unet, rows=1, height=16, width=16)
    batch = batch_of(unet, [mask])
    for site in batch.program.sites:
        tokens = torch.from_numpy(batch.parts[0].tables.levels[site.level].tokens)
        if site.kind == "halo":
            recording[site.name][0, tokens] = torch.nan
        elif site.kind in ("key", "value"):
            recording[site.name][0, :, tokens] = 1e4
    prediction = SparseUNet(unet).eval()(
        *sparse_feed(unet, inputs, batch, [ArrayCache(recording)]).values()
    )
    assert largest_difference(batch, prediction, answer, [mask]) <= 1e-4


@torch.no_grad()
def test_live_norms_follow_the_rows_and_stale_ones_do_not() -> None:
    """With another input inside the mask, statistics that take in the live rows are nearer to the
    dense ones.
    """
    unet, mask = small_unet("demo"), mask_of("islands", 16, 16)
    mask[4:12, 4:12] = True
    inputs, recording, _ = dense_pass(unet, rows=1, height=16, width=16)
    changed = dict(inputs)
    changed["sample"] = torch.where(
        torch.from_numpy(mask), 2 * inputs["sample"] + 1, inputs["sample"]
    )
    answer = unet(*(changed[k] for k in ("sample", "timestep", "encoder_hidden_states"))).sample
    differences = {}
    for live in (True, False):
        batch = batch_of(unet, [mask], live_norms=live)
        feed = sparse_feed(unet, changed, batch, [ArrayCache(recording)])
        prediction = SparseUNet(unet).eval()(*feed.values())
        differences[live] = largest_difference(batch, prediction, answer, [mask])
    assert 1e-3 < differences[True] < differences[False]


@every_topology
def test_sites_describe_what_is_recorded(name: str) -> None:
    unet = small_unet(name)
    _, recording, _ = dense_pass(unet, rows=2, height=9, width=13)
    program = program_of(unet)
    tokens = [h * w for h, w in level_sizes((9, 13), program.paddings)]
    for site in program.sites:
        assert recording[site.name].shape == (2, *site.shape(tokens)), site.name
    assert len({site.name for site in program.sites}) == len(program.sites)


@pytest.mark.parametrize("variant", CONFIGS)
def test_every_weight_of_the_published_configurations_is_in_one_sparse_graph(variant: str) -> None:
    unet = graphs.new_network("unet", CONFIGS[variant]["unet"])
    wrapped = SparseUNet(unet), TextProjections(unet)
    held = Counter(n for graph in wrapped for n, _ in graph.named_parameters())
    assert held == Counter(n for n, _ in unet.named_parameters())


def test_a_network_that_is_not_known_is_refused() -> None:
    unet = small_unet("demo")
    resnet = unet.mid_block.resnets[0]
    resnet.output_scale_factor = 2.0
    try:
        with pytest.raises(ValueError, match=r"resnets\.0 of the UNet has output_scale"):
            program_of(unet)
    finally:
        resnet.output_scale_factor = 1.0

"""Pruned and distilled UNets: dense, sparse, with low-rank inputs and as graphs, against diffusers'
own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from diffusers import UNet2DConditionModel

from tessera.adapters.names import original_names
from tessera.manifest import LOWRANK, Latents
from tessera.networks import graphs
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.networks.outline import Outline
from tessera.networks.sparse_unet import SparseUNet
from tessera.networks.walk import outline_of
from tessera.sparse.batch import ArrayCache
from tessera.variants import VARIANTS, Variant
from tessera_build.audit import check_config
from tessera_build.examples import decoder_inputs, example_inputs, run
from tessera_build.export import export_graph
from tessera_build.graphs import signature_of
from tests.fakes.pruned import PRUNED, pruned
from tests.fakes.sparse import (
    batch_of,
    dense_pass,
    largest_difference,
    mask_of,
    random_residuals,
    sparse_feed,
)
from tests.samples.graphs import whole

every_pruned = pytest.mark.parametrize("name", PRUNED)


def variant_of(unet: UNet2DConditionModel) -> Variant:
    return VARIANTS["sdxl" if unet.config.addition_embed_type else "sd15"]


@torch.no_grad()
@every_pruned
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 13)], ids=str)
def test_the_halves_with_residuals_make_the_whole_unet(name: str, height: int, width: int) -> None:
    unet = pruned(name)
    check_config("UNet", "UNet2DConditionModel", unet.config)
    size = {"rows": 2, "height": height, "width": width}
    inputs = example_inputs(UNetEncoder(unet), Latents(4, 8, 1.0), **size)
    maps = random_residuals(unet, **size)
    mid, emb, *skips = UNetEncoder(unet)(*inputs.values())
    for target, residual in zip([*skips, mid], maps, strict=True):
        target.add_(residual)
    halves = UNetDecoder(unet)(mid, emb, inputs["encoder_hidden_states"], *skips)
    added = {
        "down_block_additional_residuals": tuple(maps[:-1]),
        "mid_block_additional_residual": maps[-1],
    }
    expected = whole(unet, inputs, **added)
    assert (halves - expected).abs().max() <= 1e-5
    assert (expected - whole(unet, inputs)).abs().max() > 0.1


@torch.no_grad()
@every_pruned
def test_sparse_is_dense_when_the_cache_is_its_own(name: str) -> None:
    unet = pruned(name)
    masks = [mask_of(kind, 9, 13) for kind in ("islands", "pixel", "borders")]
    maps = random_residuals(unet, rows=3, height=9, width=13)
    inputs, recording, answer = dense_pass(unet, rows=3, height=9, width=13, residuals=maps)
    batch = batch_of(unet, masks)
    feed = sparse_feed(unet, inputs, batch, [ArrayCache(recording, i) for i in range(3)])
    feed |= batch.residuals(maps)
    prediction = SparseUNet(unet).eval()(*feed.values())
    assert largest_difference(batch, prediction, answer, masks) <= 1e-4


@every_pruned
def test_an_outline_keeps_what_there_is(name: str) -> None:
    outline = outline_of(pruned(name))
    assert Outline.from_json(outline.to_json()) == outline
    assert outline.program is not None
    assert list(outline.program.residuals)[-1] == "residual_mid"
    skips = sum(len(block.resnets) for block in pruned(name).up_blocks)
    assert len(outline.program.residuals) == skips + 1


@every_pruned
def test_every_module_has_one_name_for_loras(name: str) -> None:
    unet = pruned(name)
    modules = {module for module, _ in unet.named_parameters()}
    stems = {module.rpartition(".")[0] for module in modules} - {"time_embedding.cond_proj"}
    names = original_names(stems)
    assert set(names) == stems
    assert len(set(names.values())) == len(stems)
    held = {n for half in ("encoder", "decoder") for n in outline_of(unet).half(f"unet_{half}")}
    assert held == set(outline_of(unet).weights)


GRAPHS = [
    *(("vega", graph) for graph in ("unet_encoder", "unet_decoder", "unet_sparse")),
    ("vega", f"unet_encoder{LOWRANK}"),
    *(("lcm", graph) for graph in ("unet_encoder", "unet_sparse")),
]


@pytest.mark.parametrize(("name", "graph"), GRAPHS)
def test_graphs_compute_what_torch_computes(name: str, graph: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    unet, space = pruned(name), Latents(4, 8, 1.0)
    module = graphs.wrap(graph, unet, variant_of(unet))
    size, traced = ({"rows": 3, "height": 10, "width": 14}, {"rows": 2, "height": 32, "width": 16})
    if graph == "unet_decoder":
        encoder = graphs.wrap("unet_encoder", unet, variant_of(unet))
        before = example_inputs(encoder, space, **size)
        example = inputs = decoder_inputs(before, run(encoder, before))
    else:
        example, inputs = (example_inputs(module, space, **s) for s in (traced, size))
    path = tmp_path / "graph.onnx"
    export_graph(module, signature_of(module, example), path)
    expected = run(module, inputs)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {key: value.numpy() for key, value in inputs.items()}
    found = dict(zip(expected, session.run(list(expected), given), strict=True))
    for key, output in found.items():
        value = expected[key].numpy()
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(output / scale, value / scale, atol=1e-4, rtol=0, err_msg=key)
    if graph == "unet_encoder" and unet.mid_block is None:
        last = list(found)[-1]
        assert np.array_equal(found["mid"], found[last])
        assert not np.shares_memory(found["mid"], found[last]), "residuals are added in place"

"""Graphs of every variant, from checkpoints with random weights, against the torch modules."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tessera.manifest import read_manifest
from tessera.networks import controlnets, modules
from tessera.networks.weights import Initializers, to_layout
from tessera.variants import VARIANTS
from tessera_build.examples import run
from tests.samples.graphs import Make, resized, spec_of, unet_and_inputs, whole

COMMON = (
    "text_encoder",
    "unet_encoder",
    "unet_decoder",
    "unet_encoder_lowrank",
    "unet_decoder_lowrank",
    "unet_text",
    "unet_sparse",
    "vae_encoder",
    "vae_decoder",
    "controlnet_edges",
    "controlnet_edges_hint",
)


GRAPHS = [(v, g) for v in VARIANTS for g in (*COMMON, *VARIANTS[v].text_encoders[1:])]


every_graph = pytest.mark.parametrize(("variant", "graph"), GRAPHS)


@every_graph
def test_every_weight_keeps_its_name_and_value(small: Make, variant: str, graph: str) -> None:
    made = small(variant)
    held = Initializers(made.bundle / "graphs" / f"{graph}.onnx")
    layout = read_manifest(made.bundle).graphs[graph].layout
    for name, parameter in spec_of(made, graph).module.named_parameters():
        expected = to_layout(name, parameter.detach(), layout)
        assert held.shape(name) == tuple(expected.shape), name
        assert torch.equal(held[name], expected), name


@every_graph
@pytest.mark.parametrize(
    ("rows", "height", "width"), [(1, 16, 16), (3, 10, 14), (2, 9, 13)], ids=str
)
def test_graphs_compute_what_torch_computes(
    small: Make, variant: str, graph: str, rows: int, height: int, width: int
) -> None:
    made = small(variant)
    spec = spec_of(made, graph)
    inputs = resized(made, graph, rows, height, width)
    expected = run(spec.module, inputs)
    session = ort.InferenceSession(
        str(made.bundle / "graphs" / f"{graph}.onnx"), providers=["CPUExecutionProvider"]
    )
    names = list(spec.signature.outputs)
    outputs = session.run(names, {k: v.numpy() for k, v in inputs.items()})
    for name, output in zip(names, outputs, strict=True):
        value = expected[name]
        scale = max(1.0, float(value.abs().max()))
        np.testing.assert_allclose(output / scale, value / scale, atol=1e-4, rtol=0, err_msg=name)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 13)], ids=str)
def test_the_halves_make_the_whole_unet(variant: str, height: int, width: int) -> None:
    unet, inputs = unet_and_inputs(variant, 3, height, width)
    mid, emb, *skips = modules.UNetEncoder(unet)(*inputs.values())
    halves = modules.UNetDecoder(unet)(mid, emb, inputs["encoder_hidden_states"], *skips)
    assert (halves - whole(unet, inputs)).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_control_residuals_go_in_at_the_cut(variant: str) -> None:
    unet, inputs = unet_and_inputs(variant, 2, 16, 16)
    mid, emb, *skips = modules.UNetEncoder(unet)(*inputs.values())
    down = [torch.randn_like(s) for s in skips]
    middle = torch.randn_like(mid)
    halves = modules.UNetDecoder(unet)(
        mid + middle,
        emb,
        inputs["encoder_hidden_states"],
        *(s + d for s, d in zip(skips, down, strict=True)),
    )
    expected = whole(
        unet, inputs, down_block_additional_residuals=down, mid_block_additional_residual=middle
    )
    assert (halves - expected).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_two_graphs_of_a_controlnet_make_the_whole(small: Make, variant: str) -> None:
    network = small(variant).control
    inputs = resized(small(variant), "unet_encoder", 2, 16, 16)
    image = torch.rand(2, 3, 128, 128)
    hint = controlnets.ControlNetHint(network)(image)
    *residuals, middle = controlnets.ControlNet(network)(*inputs.values(), hint)
    added = {k: inputs[k] for k in ("text_embeds", "time_ids") if k in inputs}
    basic = [inputs[k] for k in ("sample", "timestep", "encoder_hidden_states")]
    expected, expected_middle = network(
        *basic, image, conditioning_scale=1.0, added_cond_kwargs=added or None, return_dict=False
    )
    assert len(residuals) == len(expected)
    for found, wanted in zip([*residuals, middle], [*expected, expected_middle], strict=True):
        assert wanted.abs().max() > 1e-2, "zeros would prove nothing"
        assert (found - wanted).abs().max() <= 1e-5

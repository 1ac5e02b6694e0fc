"""ControlNets of several kinds, cut into hint and step, against diffusers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel

from tessera.manifest import Latents
from tessera.networks import graphs
from tessera.networks.controlnets import ControlNet, ControlNetHint, UnionHint
from tessera.types import Tensors
from tessera.variants import VARIANTS
from tessera_build.audit import check_config
from tessera_build.examples import example_inputs, run
from tessera_build.export import export_graph
from tessera_build.graphs import signature_of
from tests.fakes.checkpoint import controlnet, topology
from tests.fakes.controlnets import HINTS, MODES, union

SPACE = Latents(4, 8, 1.0)
SIZE = {"rows": 2, "height": 9, "width": 13}
UNET = topology("sdxl").unet
UNION = union(UNET)
POOLED = controlnet(UNET, **HINTS)
POOLED.register_to_config(global_pool_conditions=True)
HINTED = ("hint", "mode_emb")
ADDED = ("text_embeds", "time_ids")


def inputs_of(network: ControlNetModel | ControlNetUnionModel) -> Tensors:
    """As a guided request has them: its branches have the same latents and timestep."""
    torch.manual_seed(5)
    inputs = example_inputs(ControlNet(network), SPACE, **SIZE)
    for name in ("sample", "timestep"):
        inputs[name][1] = inputs[name][0]
    return {name: value for name, value in inputs.items() if name not in HINTED}


def difference(found: tuple[torch.Tensor, ...], expected: Any) -> float:
    skips, middle = expected
    assert len(found) == len(skips) + 1
    pairs = list(zip(found, [*skips, middle], strict=True))
    assert all(wanted.abs().max() > 1e-2 for _, wanted in pairs), "zeros would prove nothing"
    return max(float((one - other).abs().max()) for one, other in pairs)


@torch.no_grad()
@pytest.mark.parametrize("mode", range(MODES))
def test_a_union_is_diffusers_union_in_every_mode(mode: int) -> None:
    inputs, image = inputs_of(UNION), torch.rand(1, 3, 72, 104)
    chosen = torch.nn.functional.one_hot(torch.tensor([mode]), MODES).float()
    hint, mode_emb = UnionHint(UNION)(image, chosen)
    basic = [inputs[k] for k in ("sample", "timestep", "encoder_hidden_states")]
    added = {k: inputs[k] for k in ADDED}
    both = hint.expand(2, -1, -1, -1), mode_emb.expand(2, -1)
    found = ControlNet(UNION)(*basic, *added.values(), *both)
    expected = UNION(
        *basic,
        controlnet_cond=[image.expand(2, -1, -1, -1)],
        control_type=chosen.expand(2, -1),
        control_type_idx=[mode],
        conditioning_scale=1.0,
        added_cond_kwargs=added,
        return_dict=False,
    )
    assert difference(found, expected) <= 1e-5


@torch.no_grad()
def test_pooled_residuals_are_diffusers_means() -> None:
    inputs, image = inputs_of(POOLED), torch.rand(2, 3, 72, 104)
    basic = [inputs[k] for k in ("sample", "timestep", "encoder_hidden_states")]
    added = {k: inputs[k] for k in ADDED}
    hint = ControlNetHint(POOLED)(image)
    found = ControlNet(POOLED)(*basic, *added.values(), hint)
    expected = POOLED(*basic, image, added_cond_kwargs=added, return_dict=False)
    assert difference(found, expected) <= 1e-5
    assert found[0].shape[2:] == (9, 13), "each has the size of its skip"


@pytest.mark.parametrize("network", [UNION, POOLED], ids=["union", "pooled"])
@pytest.mark.parametrize("graph", ["controlnet_any", "controlnet_any_hint"])
def test_graphs_compute_what_torch_computes(
    network: ControlNetModel | ControlNetUnionModel, graph: str, tmp_path: Path
) -> None:
    check_config("ControlNet", type(network).__name__, network.config)
    config = {"_class_name": type(network).__name__, **network.config}
    assert type(graphs.new_network(graph, config)) is type(network)
    module = graphs.wrap(graph, network, VARIANTS["sdxl"])
    example = example_inputs(module, SPACE, rows=2, height=32, width=16)
    inputs = example_inputs(module, SPACE, rows=3, height=10, width=14)
    export_graph(module, signature_of(module, example), tmp_path / "graph.onnx")
    expected = run(module, inputs)
    session = ort.InferenceSession(str(tmp_path / "graph.onnx"), providers=["CPUExecutionProvider"])
    given = {name: value.numpy() for name, value in inputs.items()}
    for name, output in zip(expected, session.run(list(expected), given), strict=True):
        value = expected[name].numpy()
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(output / scale, value / scale, atol=1e-4, rtol=0, err_msg=name)

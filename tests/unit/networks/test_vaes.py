"""Tiny and asymmetric VAEs against diffusers' own: networks, graphs, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DiffusionPipeline

from tessera.codec.vae import encode_template
from tessera.engines.torch import TorchEngine
from tessera.manifest import Latents
from tessera.networks import graphs
from tessera.networks.modules import Vae
from tessera.variants import VARIANTS
from tessera_build.checkpoint import open_checkpoint
from tessera_build.examples import example_inputs, run
from tessera_build.export import export_graph
from tessera_build.graphs import latents_of, signature_of
from tessera_build.previews import fit_linear_decoder
from tests.fakes.checkpoint import topology
from tests.samples.drawing import by_diffusers, draw
from tests.samples.forms import asymmetric, tiny

SAMPLING: dict[str, Any] = {"steps": 4, "guidance": 4.0, "seed": 5}
HALVES = ("vae_encoder", "vae_decoder")
KINDS = {"tiny": tiny, "asymmetric": asymmetric}


@pytest.fixture(scope="module", params=KINDS)
def vae(request: pytest.FixtureRequest) -> Vae:
    torch.manual_seed(3)
    made: Vae = KINDS[request.param]()
    return made


def with_vae(vae: Vae) -> DiffusionPipeline:
    pipe = topology("sd15")
    pipe.register_modules(vae=vae)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


@torch.no_grad()
def test_pictures_become_diffusers_latents(vae: Vae) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    encoded = vae.encode(image)
    mean = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mean
    space = latents_of(with_vae(vae))
    assert space == Latents(4, 8, 1.0 if isinstance(vae, AutoencoderTiny) else 0.18215)
    engine = TorchEngine(graphs.wrap("vae_encoder", vae, VARIANTS["sd15"]))
    found = encode_template(engine, pixels, space)
    torch.testing.assert_close(found, space.scale * mean[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("graph", HALVES)
def test_graphs_compute_what_torch_computes(vae: Vae, graph: str, tmp_path: Path) -> None:
    config = {"_class_name": type(vae).__name__, **vae.config}
    assert type(graphs.new_network("vae", config)) is type(vae)
    module = graphs.wrap(graph, vae, VARIANTS["sd15"])
    space = Latents(4, 8, 1.0)
    example = example_inputs(module, space, rows=2, height=32, width=16)
    inputs = example_inputs(module, space, rows=1, height=9, width=13)
    path = tmp_path / "graph.onnx"
    export_graph(module, signature_of(module, example), path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = run(module, inputs)
    given = {name: value.numpy() for name, value in inputs.items()}
    for name, output in zip(expected, session.run(list(expected), given), strict=True):
        value = expected[name].numpy()
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(output / scale, value / scale, atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_with_it_draws_diffusers_pictures(vae: Vae, tmp_path: Path) -> None:
    with_vae(vae).save_pretrained(tmp_path / "checkpoint")
    pipe, variant = open_checkpoint(tmp_path / "checkpoint")
    assert type(pipe.vae) is type(vae)
    expected = by_diffusers(pipe, **SAMPLING).astype(int)
    found = draw(pipe, variant, "ddim", **SAMPLING).astype(int)
    assert expected.std() > 5, "an empty picture would prove nothing"
    assert np.abs(found - expected).max() <= 2


def test_previews_are_fitted_to_it(vae: Vae) -> None:
    decoder = fit_linear_decoder(vae, latents_of(with_vae(vae)))
    assert len(decoder.weights) == 4
    assert np.isfinite(decoder.rmse)

"""Sparse steps of an inpainting UNet, whose input has a mask and a masked picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.codec.vae import encode_masked, unmasked
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.denoise.running import Running
from tessera.denoise.unet import UNet
from tessera.edits import steps
from tessera.engines.torch import TorchEngine
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.templates import recorder as recorder_module
from tessera.templates.storage import Storage
from tests.fakes.engine import vae_encoder_engine
from tests.fakes.sparse import small_unet
from tests.samples.edits import EMPTY, FULL, PART, PICTURE, STEPS, World, edit, run
from tests.samples.requests import MANIFEST

NETWORK = small_unet("demo-inpainting")
DENSE = UNet(TorchEngine(UNetEncoder(NETWORK)), TorchEngine(UNetDecoder(NETWORK)), max_rows=16)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(recorder_module, "choose_storage", lambda *a: Storage("float32"))
    monkeypatch.setattr(steps, "WARM_UP", 0)
    made = World(tmp_path, unet=NETWORK)
    made.recorder.ensure(made.key())
    return made


def masked(active: torch.Tensor) -> torch.Tensor:
    mask = (255 * active).numpy().astype(np.uint8).repeat(4, 0).repeat(4, 1)
    return encode_masked(vae_encoder_engine(), PICTURE, mask, MANIFEST.latents)[None]


def dense_edit(active: torch.Tensor, **options: object) -> Running:
    return edit(None, active, **options)  # type: ignore[arg-type]


def test_the_recording_is_of_a_template_without_a_mask(world: World) -> None:
    """With the template's own noise and prompt, and nothing masked, a first step is exact."""
    options = {"seed": TEMPLATE_SEED, "guidance": 1.0, "text": EMPTY}
    sparse = edit(world, PART, **options)  # type: ignore[arg-type]
    dense = dense_edit(PART, **options)
    assert dense.canvas is not None
    for request in (sparse, dense):
        request.masked = unmasked(dense.canvas.clean[0])[None]
    run([sparse], world, ticks=1, dense=DENSE)
    run([dense], ticks=1, dense=DENSE)
    assert sparse.stats.sparse_ticks == 1
    scale = float(dense.latents.abs().max())
    torch.testing.assert_close(sparse.latents, dense.latents, atol=1e-4 * scale, rtol=0)


def test_active_tokens_see_mask_and_masked_picture(world: World) -> None:
    """With every latent active, sparse is dense, and what is masked matters."""
    sparse, dense, other = edit(world, FULL), dense_edit(FULL), dense_edit(FULL)
    sparse.masked = dense.masked = masked(PART)
    other.masked = masked(FULL)
    run([sparse], world, dense=DENSE)
    run([dense, other], dense=DENSE)
    assert sparse.stats.sparse_ticks == STEPS
    torch.testing.assert_close(sparse.latents, dense.latents, atol=1e-3, rtol=0)
    assert (other.latents - dense.latents).abs().max() > 0.1


def test_the_template_stays_only_where_it_is_held(world: World) -> None:
    """As in diffusers, a dense edit draws all latents; sparse steps know those of the template."""
    sparse, free = edit(world, PART), dense_edit(PART)
    assert free.canvas is not None
    free.canvas = dataclasses.replace(free.canvas, held=False)
    sparse.masked = free.masked = masked(PART)
    run([sparse], world, dense=DENSE)
    run([free], dense=DENSE)
    outside = PART == 0
    assert torch.equal(sparse.latents[0][:, outside], free.canvas.clean[0][:, outside])
    assert (free.latents[0] - free.canvas.clean[0])[:, outside].abs().max() > 0.1

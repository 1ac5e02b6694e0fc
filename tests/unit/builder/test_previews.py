"""The linear decoder that a build fits."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tessera.codec.linear import decode_linearly
from tessera.errors import BundleError
from tessera.manifest import Latents, LinearDecoder, Manifest, read_manifest, write_manifest
from tessera_build.cli import DEMO_MODEL
from tessera_build.previews import dead_leaves, fit_linear_decoder
from tests.samples.graphs import Make
from tests.samples.requests import MANIFEST


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    loaded: AutoencoderKL = AutoencoderKL.from_pretrained(DEMO_MODEL / "vae")
    return loaded


@pytest.fixture(scope="module")
def latents(vae: AutoencoderKL) -> Latents:
    return Latents(4, 4, vae.config.scaling_factor)


@torch.inference_mode()
def test_its_quality_is_as_stated(vae: AutoencoderKL, latents: Latents) -> None:
    decoder = fit_linear_decoder(vae, latents)
    squares = []
    for seed in range(5, 9):
        picture = torch.from_numpy(dead_leaves(np.random.default_rng(seed), 128))
        encoded = vae.encode(picture.permute(2, 0, 1)[None] / 127.5 - 1).latent_dist.mean
        decoded = 127.5 * (vae.decode(encoded).sample[0].clamp(-1, 1).permute(1, 2, 0) + 1)
        expected = decoded.reshape(32, 4, 32, 4, 3).mean(dim=(1, 3)).numpy()
        found = decode_linearly(decoder, (latents.scale * encoded)[0].numpy())
        squares.append(((found - expected) ** 2).mean())
    assert np.sqrt(np.mean(squares)) == pytest.approx(decoder.rmse, rel=0.15)
    assert decoder.r2 > 0.75


def test_the_same_vae_gives_the_same_decoder(vae: AutoencoderKL, latents: Latents) -> None:
    assert fit_linear_decoder(vae, latents) == fit_linear_decoder(vae, latents)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_vae_in_half_precision_is_fitted_in_float32_and_stays_as_it_is(
    vae: AutoencoderKL, latents: Latents, dtype: torch.dtype
) -> None:
    """Its weights are those of half precision; only the arithmetic is another's."""
    half = copy.deepcopy(vae).to(dtype)
    expected = fit_linear_decoder(copy.deepcopy(half).float(), latents)
    assert fit_linear_decoder(half, latents) == expected
    assert half.dtype == dtype


@pytest.mark.parametrize("variant", ["sd15", "sd21", "sdxl"])
def test_a_bundle_has_it(small: Make, variant: str) -> None:
    decoder = read_manifest(small(variant).bundle).linear_decoder
    assert decoder is not None
    assert np.shape(decoder.weights) == (4, 3)
    assert np.shape(decoder.bias) == (3,)
    assert decoder.rmse < 60


def test_an_older_bundle_has_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bundle")

    def read(manifest: Manifest) -> Manifest:
        write_manifest(folder, manifest)
        return read_manifest(folder)

    assert read(MANIFEST).linear_decoder is None
    decoder = LinearDecoder([[1.0, 2.0, 3.0]], [4.0, 5.0, 6.0], 0.5, 7.0)
    assert read(dataclasses.replace(MANIFEST, linear_decoder=decoder)).linear_decoder == decoder
    path = folder / "bundle.json"
    path.write_text(path.read_text().replace('"rmse"', '"rms"'))
    with pytest.raises(BundleError, match="is damaged"):
        read_manifest(folder)

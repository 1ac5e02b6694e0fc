"""Fits the linear decoder of previews to a bundle's VAE.

Every latent becomes one pixel: the mean colour of what the VAE makes of it and its neighbours. That
is nearly linear in Stable Diffusion's latents, so a least-squares fit does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderTiny
from torch.nn.functional import avg_pool2d

from tessera.manifest import Latents, LinearDecoder
from tessera.networks.modules import Vae

Doubles = npt.NDArray[np.float64]

FITTED, HELD_OUT = 8, 4
"""Pictures to fit the decoder to, and to judge it by."""

SIDE = 32
"""Latents in a side of these pictures."""

_DISCS = 400
_RADII = (0.02, 0.5)
"""Shares of the side. Radii follow a power law of exponent -3, which makes the pictures look alike
at all scales."""


def fit_linear_decoder(vae: Vae, latents: Latents) -> LinearDecoder:
    """Factors by which a latent's channels become a colour, and how good they are.

    The pictures are "dead leaves": discs of random colours that cover each other, with the
    statistics of natural images (Lee, Mumford & Huang 2001). The judged ones are not fitted.
    Computed in float32: without AVX512-FP16 a CPU takes 145 to 225 times as long for a convolution
    in float16.
    """
    if vae.dtype != torch.float32:
        vae = copy.deepcopy(vae).float()
    pairs = list(_pairs(vae, latents))
    inputs, colours = (np.concatenate(p) for p in zip(*pairs[:FITTED], strict=True))
    factors = np.linalg.lstsq(_with_one(inputs), colours, rcond=None)[0]
    inputs, colours = (np.concatenate(p) for p in zip(*pairs[FITTED:], strict=True))
    errors = colours - (_with_one(inputs) @ factors).clip(0, 255)
    spread = colours - colours.mean(axis=0)
    return LinearDecoder(
        weights=[[_short(w) for w in row] for row in factors[:-1]],
        bias=[_short(b) for b in factors[-1]],
        r2=_short(1 - float((errors**2).sum() / (spread**2).sum())),
        rmse=_short(float(np.sqrt((errors**2).mean()))),
    )


@torch.inference_mode()
def _pairs(vae: Vae, latents: Latents) -> Iterator[tuple[Doubles, Doubles]]:
    """Of each picture its latents (n, c) and the colours (n, 3) of what the VAE makes of them."""
    generator = np.random.default_rng(0)
    side = SIDE * latents.pixels
    for _ in range(FITTED + HELD_OUT):
        picture = torch.from_numpy(dead_leaves(generator, side)).permute(2, 0, 1)[None]
        encoded = vae.encode(picture / 127.5 - 1)
        tiny = isinstance(vae, AutoencoderTiny)
        mean = encoded.latents if tiny else encoded.latent_dist.mean
        decoded = vae.decode(mean).sample.clamp(-1, 1)
        colours = 127.5 * (avg_pool2d(decoded, latents.pixels) + 1)
        yield _rows(latents.scale * mean), _rows(colours)


def dead_leaves(generator: np.random.Generator, side: int) -> npt.NDArray[np.float32]:
    """A picture (side, side, 3), float32, 0..255, of discs that cover each other."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    picture = np.empty((side, side, 3), np.float32)
    picture[:] = _colour(generator)
    smallest, largest = (side * share for share in _RADII)
    for _ in range(_DISCS):
        share = generator.uniform()
        radius = (smallest**-2 - share * (smallest**-2 - largest**-2)) ** -0.5
        centre_x, centre_y = generator.uniform(0, side, 2)
        picture[(x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2] = _colour(generator)
    return picture


def _colour(generator: np.random.Generator) -> Doubles:
    """Most colours are pale: brightness varies more than its distance from grey."""
    grey = generator.uniform(0, 255)
    tint: Doubles = generator.normal(0, 50, 3)
    colour: Doubles = (grey + tint).clip(0, 255)
    return colour


def _rows(tensor: torch.Tensor) -> Doubles:
    rows: Doubles = tensor[0].flatten(1).T.double().numpy()  # (1, c, h, w) -> (h w, c)
    return rows


def _with_one(rows: Doubles) -> Doubles:
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)


def _short(value: float) -> float:
    return float(f"{value:.6g}")

"""Inpainting UNets against diffusers' inpainting pipelines, on small random weights in the
topologies of Stable Diffusion 1.5, 2 and XL inpainting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tessera.codec.masks import active_latents, paste
from tessera.codec.vae import decode_latents, encode_masked, encode_nothing, encode_template
from tessera.denoise.canvas import Canvas, canvas_of
from tessera.denoise.running import start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tessera.denoise.unet import conditions_of
from tessera.manifest import Latents
from tessera.networks.modules import VaeDecoder, VaeEncoder
from tessera.types import Tensors
from tessera.variants import VARIANTS
from tests.fakes.checkpoint import topology
from tests.fakes.engine import FakeEngine
from tests.samples.images import island, ramp
from tests.samples.inpainting import by_diffusers
from tests.samples.plans import plan

SEED, STEPS, GUIDANCE = 11, 5, 3.0
IMAGE, MASK = ramp(), island()
HEIGHT, WIDTH = MASK.shape


class Drawn:
    """A variant's networks, and pictures that Tessera's code and diffusers draw with them."""

    def __init__(self, variant: str) -> None:
        self.variant = VARIANTS[variant]
        self.pipe = topology(f"{variant}-inpainting")
        self.pipe.set_progress_bar_config(disable=True)
        vae = self.pipe.vae
        encoder, decoder = VaeEncoder(vae), VaeDecoder(vae)
        self.encoder = FakeEngine(lambda i: {"mean": encoder(i["image"])[0]})
        self.decoder = FakeEngine(lambda i: {"image": decoder(i["latents"])})
        self.space = Latents(4, 8, vae.config.scaling_factor)
        generator = torch.Generator().manual_seed(1)
        width = self.pipe.unet.config.cross_attention_dim
        self.text = torch.randn(2, 7, width, generator=generator)
        self.pooled = torch.randn(2, 40, generator=generator)

    @torch.inference_mode()
    def by_tessera(self, masked: torch.Tensor, canvas: Canvas | None, strength: float) -> Any:
        first = STEPS - int(STEPS * strength)
        wanted = plan(seed=SEED, steps=STEPS, guidance=GUIDANCE, first_step=first)
        conditions = conditions_of(
            self.text, self.pooled, width=WIDTH, height=HEIGHT, variant=self.variant
        )
        request = start(
            wanted,
            conditions,
            Sampler("euler", self.pipe.scheduler.config, steps=STEPS, seed=SEED, first=first),
            shape=(4, HEIGHT // 8, WIDTH // 8),
            canvas=canvas,
            masked=masked[None],
        )
        while not request.finished:
            tick([request], self.predict, request.step + 1)
        assert request.error is None
        return decode_latents(self.decoder, request.latents, self.space)[0]

    def predict(
        self, sample: torch.Tensor, timestep: torch.Tensor, given: Mapping[str, Any], join: object
    ) -> torch.Tensor:
        added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
        text = given["encoder_hidden_states"]
        found: torch.Tensor = self.pipe.unet(
            sample, timestep, text, added_cond_kwargs=added or None
        ).sample
        return found

    def by_diffusers(self, mask: Any, strength: float) -> Any:
        embeds: Tensors = {"negative_prompt_embeds": self.text[:1], "prompt_embeds": self.text[1:]}
        if self.variant.pooled:
            embeds["negative_pooled_prompt_embeds"] = self.pooled[:1]
            embeds["pooled_prompt_embeds"] = self.pooled[1:]
        return by_diffusers(
            self.pipe,
            IMAGE,
            mask,
            scheduler="euler",
            seed=SEED,
            prompt=None,
            strength=strength,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            **embeds,
        )


@pytest.fixture(scope="module", params=VARIANTS)
def drawn(request: pytest.FixtureRequest) -> Drawn:
    return Drawn(request.param)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_dense_edits_equal_diffusers_inpainting(drawn: Drawn, strength: float) -> None:
    clean = encode_template(drawn.encoder, IMAGE, drawn.space)
    active = torch.from_numpy(active_latents(MASK, 8))
    canvas = dataclasses.replace(canvas_of(clean, active), held=False)
    masked = encode_masked(drawn.encoder, IMAGE, MASK, drawn.space)
    picture = paste(drawn.by_tessera(masked, canvas, strength), IMAGE, MASK)
    expected = drawn.by_diffusers(MASK, strength)
    assert (expected != IMAGE).mean() > 0.1
    assert np.abs(picture.astype(np.int16) - expected).max() <= 2
    assert (picture[MASK < 128] == IMAGE[MASK < 128]).all()


def test_a_generation_is_an_edit_of_everything(drawn: Drawn) -> None:
    everything = np.full_like(MASK, 255)
    masked = encode_nothing(drawn.encoder, WIDTH, HEIGHT, drawn.space)
    picture = drawn.by_tessera(masked, None, 1.0)
    expected = drawn.by_diffusers(everything, 1.0)
    assert expected.std() > 5, "a flat picture would prove nothing"
    assert np.abs(picture.astype(np.int16) - expected).max() <= 2

"""An inpainting checkpoint, in small and with random weights: from the checkpoint to the pictures
that Triton serves, against diffusers' inpainting pipelines on the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tessera.codec.masks import paste
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera_build.similarity import ssim
from tessera_client import Client, Control
from tests.samples.bundles import INPAINTING, Small
from tests.samples.images import island, largest, noise_blocks, ramp
from tests.samples.inpainting import PROMPT, by_diffusers
from tests.samples.references import References
from tests.samples.schedulers import diffusers_scheduler
from tests.samples.servers import ended_whole

IMAGE, MASK = ramp(120, 96), island(120, 96)
EVERYTHING = np.full((96, 120), 255, np.uint8)
OPTIONS: dict[str, Any] = {"seed": 5, "steps": 5, "guidance": 3.0, "scheduler": "euler"}


@dataclass(frozen=True)
class Served:
    """A server, and diffusers on the same weights."""

    client: Client
    references: References

    def expected(self, mask: Any, **options: Any) -> Any:
        """The edit by diffusers."""
        seed, scheduler = OPTIONS["seed"], OPTIONS["scheduler"]
        pipe = options.pop("pipe", None) or self.references.inpainting()
        return by_diffusers(
            pipe,
            IMAGE,
            mask,
            seed=seed,
            scheduler=scheduler,
            num_inference_steps=OPTIONS["steps"],
            guidance_scale=OPTIONS["guidance"],
            **options,
        )


@pytest.fixture(scope="module")
def served(
    small: Callable[[str], Small], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    made, log = small(INPAINTING), tmp_path_factory.mktemp("inpainting") / "log"
    with (
        ended_whole(made.bundle, log, "--threads=2") as server,
        Client(server.http, timeout=300) as client,
    ):
        yield Served(client, References(made))


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_dense_edits_equal_diffusers_inpainting(served: Served, strength: float) -> None:
    """With any seed: diffusers draws all latents of an inpainting UNet, and so does Tessera."""
    result = served.client.edit(IMAGE, MASK, PROMPT, mode="dense", strength=strength, **OPTIONS)
    expected = served.expected(MASK, strength=strength)
    assert (expected != IMAGE).mean() > 0.1
    assert largest(result, expected) <= 2
    assert (np.asarray(result.image)[MASK < 128] == IMAGE[MASK < 128]).all()


def test_edits_with_a_controlnet_equal_diffusers(served: Served) -> None:
    """The ControlNet has four channels. Diffusers' pipeline encodes the masked picture itself, and
    draws a sample: it gets the mean here.
    """
    drawing, pipe = noise_blocks(1, 120, 96), served.references.controlled_inpainting()

    def mean(image: torch.Tensor, generator: object) -> torch.Tensor:
        latents: torch.Tensor = pipe.vae.encode(image).latent_dist.mean
        return latents * pipe.vae.config.scaling_factor

    pipe._encode_vae_image = mean
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 255
    more: dict[str, Any] = {"image": pixels, "control_image": drawing}
    more["controlnet_conditioning_scale"] = 1.0
    expected = served.expected(MASK, pipe=pipe, **more)
    control = Control("edges", image=drawing)
    result = served.client.edit(IMAGE, MASK, PROMPT, mode="dense", controls=[control], **OPTIONS)
    assert largest(result, expected) <= 2
    assert largest(result, served.expected(MASK)) > 10


def test_a_generation_is_an_edit_of_everything(served: Served) -> None:
    result = served.client.generate(PROMPT, width=120, height=96, **OPTIONS)
    expected = served.expected(EVERYTHING)
    assert expected.std() > 5, "a flat picture would prove nothing"
    edited = served.client.edit(IMAGE, EVERYTHING, PROMPT, mode="dense", **OPTIONS)
    assert largest(edited, expected) <= 2
    inner = np.s_[8:-8, 8:-8]  # no feather at the picture's edge, but rounding
    assert np.abs(np.asarray(result.image, np.int16) - np.asarray(edited.image))[inner].max() <= 2


@torch.inference_mode()
def held(pipe: Any, image: Any, mask: Any) -> Any:
    """What a sparse edit draws if every token is computed, over diffusers' components: after each
    step the latents outside the mask are the template's again, noised by the template's seed.
    """
    name, config = OPTIONS["scheduler"], pipe.scheduler.config
    steps, fresh = (diffusers_scheduler(name, config) for _ in range(2))
    for each in (steps, fresh):
        each.set_timesteps(OPTIONS["steps"])
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255 * 2 - 1
    seen = pixels * torch.from_numpy(mask < 128)
    scale = pipe.vae.config.scaling_factor
    clean, masked = (pipe.vae.encode(p.float()).latent_dist.mean * scale for p in (pixels, seen))
    active = torch.from_numpy(mask[::8, ::8] >= 128)[None, None]
    drawn, template = (
        torch.randn(clean.shape, generator=torch.Generator("cpu").manual_seed(seed))
        for seed in (OPTIONS["seed"], TEMPLATE_SEED)
    )
    text = torch.cat([pipe.encode_prompt(each, "cpu", 1, False)[0] for each in ("", PROMPT)])
    latents = torch.where(active, drawn, template) * steps.init_noise_sigma
    for index, t in enumerate(steps.timesteps):
        sample = torch.cat([steps.scale_model_input(latents, t), active.float(), masked], 1)
        rows = pipe.unet(sample.repeat(2, 1, 1, 1), t, encoder_hidden_states=text).sample
        without, wanted = rows.chunk(2)
        guided = without + OPTIONS["guidance"] * (wanted - without)
        latents = steps.step(guided, t, latents).prev_sample
        following = steps.timesteps[index + 1 : index + 2]
        outside = fresh.add_noise(clean, template, following) if len(following) else clean
        latents = torch.where(active, latents, outside)
    decoded = pipe.vae.decode(latents / scale).sample
    shown = (decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    return paste((255 * shown).round().astype(np.uint8), image, mask)


def test_sparse_edits_of_everything_are_dense_ones(served: Served) -> None:
    whole = served.client.edit(IMAGE, EVERYTHING, PROMPT, mode="sparse", **OPTIONS)
    assert whole.info.mode == "sparse"
    assert largest(whole, served.expected(EVERYTHING)) <= 2


def test_a_sparse_edit_whose_margin_reaches_everywhere(served: Served) -> None:
    """Nothing of its recording is read. The first step is dense."""
    image, mask = ramp(64, 64), np.zeros((64, 64), np.uint8)
    mask[16:56, 16:56] = 255
    result = served.client.edit(image, mask, PROMPT, mode="sparse", **OPTIONS)
    assert (result.info.mode, result.info.recording, result.info.margin) == ("sparse", "own", 3)
    expected = held(served.references.inpainting(), image, mask)
    assert largest(result, expected) <= 2
    free = served.client.edit(image, mask, PROMPT, mode="dense", **OPTIONS)
    assert largest(free, expected) > 20, "a dense edit draws what is outside, too"


def test_a_sparse_edit_reads_its_recording(served: Served) -> None:
    """What it reads has not seen the mask, so it is near only."""
    mask = MASK.copy()
    mask[:, 72:] = 0
    result = served.client.edit(IMAGE, mask, PROMPT, mode="sparse", **OPTIONS)
    assert (result.info.mode, result.info.recording, result.info.margin) == ("sparse", "own", 1)
    pixels, expected = np.asarray(result.image), held(served.references.inpainting(), IMAGE, mask)
    assert (pixels[mask < 128] == IMAGE[mask < 128]).all()
    assert ssim(pixels, expected, mask) > 0.95
    assert ssim(IMAGE, expected, mask) < 0.5, "the edit has changed it"

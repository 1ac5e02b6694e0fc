"""A picture by a bundle's own engines and Tessera's code, and the same one by diffusers' pipeline.

The pipeline is put together from what the bundle has of its checkpoint: weights, configurations,
tokenizers and the scheduler. So a field of a configuration that Tessera does not apply shows, which
the comparison of graphs with their own modules cannot do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from transformers import AutoTokenizer

from tessera.codec.text import Embeddings, TextEncoder, embed
from tessera.codec.vae import decode_latents, encode_nothing
from tessera.contract import SCHEDULERS
from tessera.denoise.running import start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tessera.denoise.unet import UNet, conditions_of, embed_guidance
from tessera.engines.bundle import Bundle
from tessera.engines.registry import Source, open_module
from tessera.errors import BundleError
from tessera.manifest import Manifest
from tessera.networks.modules import VaeEncoder
from tessera.plan import Plan
from tessera.shared.settings import EngineKind
from tessera.types import Array
from tessera.variants import VARIANTS
from tessera_build.parts import inpainting_pipeline

PROMPT, NEGATIVE = "a photograph of a red house by the sea", "rain"
STEPS, GUIDANCE, SEED = 2, 4.0, 0


def difference(folder: Path, scheduler: str) -> float:
    """Largest difference of the two pictures of a bundle, as a share of the whole range.

    Args:
        folder: the bundle.
        scheduler: the sampler.

    Raises:
        BundleError: the picture cannot be drawn.
    """
    bundle = Bundle(folder, engine=EngineKind.ONNXRUNTIME)
    expected = _by_diffusers(bundle, scheduler)
    found = _by_engines(bundle, scheduler)
    return float(np.abs(found.astype(int) - expected.astype(int)).max() / 255)


@torch.inference_mode()
def _by_engines(bundle: Bundle, scheduler: str) -> Array:
    """(h, w, 3) of UINT8, as a server draws it."""
    manifest, row = bundle.manifest, VARIANTS[bundle.manifest.variant]
    side, space = manifest.limits.min_size, manifest.latents
    plan = Plan(
        slot=0,
        ticket=0,
        job_id="verify",
        seed=SEED,
        steps=STEPS,
        guidance=GUIDANCE,
        width=side,
        height=side,
        scheduler=scheduler,
        started=0.0,
        embedded=manifest.guidance_width > 0,
    )
    text = _embeddings(bundle)
    rows = slice(None) if plan.guided else slice(1, None)
    conditions = conditions_of(
        text.hidden[rows],
        text.pooled[rows],
        width=side,
        height=side,
        variant=row,
        guidance=embed_guidance(GUIDANCE, manifest.guidance_width),
    )
    sampler = Sampler(scheduler, bundle.scheduler_config, steps=STEPS, seed=SEED)
    shape = (space.channels, side // space.pixels, side // space.pixels)
    masked = None
    if manifest.inpaints:
        masked = encode_nothing(bundle.engine("vae_encoder"), side, side, space)[None]
    request = start(plan, conditions, sampler, shape=shape, masked=masked)
    halves = [bundle.engine(name) for name in ("unet_encoder", "unet_decoder")]
    unet = UNet(*halves, max_rows=manifest.limits.max_rows)
    while not request.finished:
        tick([request], unet.predict, request.step + 1)
    if request.error:
        raise BundleError(f"no picture can be drawn: {request.error}") from request.error
    picture: Array = decode_latents(bundle.engine("vae_decoder"), request.latents, space)[0]
    return picture


def _embeddings(bundle: Bundle) -> Embeddings:
    row = VARIANTS[bundle.manifest.variant]
    encoders = [
        TextEncoder(bundle.tokenizer(folder), bundle.engine(name), width=bundle.text_width(name))
        for folder, name in zip(row.tokenizers, row.text_encoders, strict=True)
    ]
    return embed(encoders, [NEGATIVE, PROMPT])


def _by_diffusers(bundle: Bundle, scheduler: str) -> Array:
    """The same by the pipeline."""
    manifest = bundle.manifest
    side = manifest.limits.min_size
    with _pipeline(bundle, scheduler) as pipe:
        picture = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            width=side,
            height=side,
            generator=torch.Generator("cpu").manual_seed(SEED),
            output_type="np",
            **_everything(pipe, side, manifest),
        ).images[0]
    pixels: Array = (picture * 255).round().astype(np.uint8)
    return pixels


@torch.no_grad()
def _everything(pipe: Any, side: int, manifest: Manifest) -> dict[str, Any]:
    """What an inpainting pipeline wants beside the rest: a mask of the whole picture. The masked
    picture is grey, and its latents are the mean, of which the pipeline would draw a sample.
    """
    if not manifest.inpaints:
        return {}
    grey = torch.zeros(1, 3, side, side)
    latents = VaeEncoder(pipe.vae)(grey)[0] * pipe.vae.config.scaling_factor
    ones = torch.ones(1, 1, side, side)
    return {"image": latents, "mask_image": ones, "masked_image_latents": latents}


@contextmanager
def _pipeline(bundle: Bundle, scheduler: str) -> Iterator[Any]:
    manifest, row = bundle.manifest, VARIANTS[bundle.manifest.variant]
    parts: dict[str, Any] = {name: _network(bundle, [name]) for name in row.text_encoders}
    parts["unet"] = _network(bundle, ["unet_encoder", "unet_decoder"])
    parts["vae"] = _network(bundle, ["vae_encoder", "vae_decoder"])
    for name in row.tokenizers:
        parts[name] = AutoTokenizer.from_pretrained(str(bundle.tokenizer(name)))
    parts["scheduler"] = _scheduler(bundle.scheduler_config, scheduler)
    kind = getattr(diffusers, inpainting_pipeline(row) if manifest.inpaints else row.pipeline)
    pipe = kind(**parts, **_further(manifest))
    pipe.set_progress_bar_config(disable=True)
    yield pipe


def _further(manifest: Manifest) -> dict[str, Any]:
    """What else a pipeline wants to know."""
    if VARIANTS[manifest.variant].pooled:
        zero = manifest.zero_negative
        return {"force_zeros_for_empty_prompt": zero, "add_watermarker": False}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _scheduler(config: dict[str, Any], name: str) -> Any:
    spec = SCHEDULERS[name]
    seeded = {"noise_sampler_seed": SEED} if spec.base == "dpmpp_sde" else {}
    return getattr(diffusers, spec.cls).from_config(config, **dict(spec.settings), **seeded)


def _network(bundle: Bundle, graphs: list[str]) -> Any:
    """The checkpoint's network, with the weights of all graphs that are a part of it."""
    sources = [Source.of(bundle.folder, bundle.manifest, graph) for graph in graphs]
    first, *others = [open_module(source) for source in sources]
    network = first.source
    for other in others:
        for name, child in other.named_children():
            setattr(network, name, child)
    return network.float().eval()

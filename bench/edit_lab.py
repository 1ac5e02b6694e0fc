"""Dense and sparse edits in this process, with all options free, for `bench/edit_quality.py`.

Uses the same engines, samplers and sparse inputs as the server. Recordings stay in memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from tessera.codec.masks import active_latents, paste
from tessera.codec.text import TextEncoder, embed
from tessera.codec.vae import decode_latents, encode_template
from tessera.denoise.canvas import TEMPLATE_SEED, Canvas, canvas_of
from tessera.denoise.running import Running, start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tessera.denoise.unet import UNet, conditions_of
from tessera.edits.steps import widened
from tessera.engines.bundle import Bundle
from tessera.plan import Plan
from tessera.sparse.batch import Batch, Cache, Part
from tessera.sparse.engines import SparseUNetEngines
from tessera.sparse.record import record
from tessera.sparse.tables import make_tables
from tessera.templates.cache import StepCache
from tessera.templates.packing import pack
from tessera.templates.recorder import Networks, open_networks
from tessera.templates.storage import Storage
from tessera.types import Array, Tensors
from tessera.variants import VARIANTS

Steps = dict[int, Tensors]
EXACT = Storage("float32")


@dataclass(frozen=True)
class Way:
    """Options of a sparse edit.

    Attributes:
        storage: storage form of the recording.
        live_norms: whether statistics of norms include the live rows.
        own_prompt: whether each branch has a recording with its own prompt. Otherwise both share
            one with the empty prompt.
        dilate: how many latents the computed tokens extend beyond the mask.
        dense_first: how many steps are dense before the first sparse one.
        dense_every: every `dense_every`-th step is dense; 0 for none.
    """

    storage: Storage = EXACT
    live_norms: bool = True
    own_prompt: bool = False
    dilate: int = 0
    dense_first: int = 0
    dense_every: int = 0

    def dense_at(self, step: int) -> bool:
        """Whether a step is dense."""
        return step < self.dense_first or bool(self.dense_every and step % self.dense_every == 0)


@dataclass(frozen=True)
class Edit:
    """The inputs of one edit."""

    image: Array
    mask: Array
    prompt: str
    seed: int = 1
    steps: int = 20
    guidance: float = 4.0


@dataclass(frozen=True)
class Made:
    """The result of an edit: the image, and milliseconds of denoising."""

    image: Array
    milliseconds: float


class Lab:
    """A bundle's engines, for edits without a server."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._bundle = Bundle(folder, threads=threads)
        manifest = self._bundle.manifest
        self._manifest = manifest
        self._variant = VARIANTS[manifest.variant]
        rows = manifest.limits.max_rows
        engine = self._bundle.engine
        self._unet = UNet(engine("unet_encoder"), engine("unet_decoder"), max_rows=rows)
        self._sparse = SparseUNetEngines(engine("unet_sparse"), engine("unet_text"))
        self._decoder = engine("vae_decoder")
        names = zip(self._variant.tokenizers, self._variant.text_encoders, strict=True)
        self._encoders = [TextEncoder(self._bundle.tokenizer(f), engine(n)) for f, n in names]

    @cached_property
    def _networks(self) -> Networks:
        return open_networks(self._bundle)

    @cached_property
    def _program(self) -> Any:
        return self._bundle.outline("unet").program

    @torch.inference_mode()
    def dense(self, edit: Edit) -> Made:
        """Make an edit with the dense UNet."""
        request = self._start(edit, self._canvas(edit))
        began = time.perf_counter()
        while not request.finished:
            tick([request], self._unet.predict, 1)
        return self._finish(request, edit, began)

    @torch.inference_mode()
    def sparse(self, edit: Edit, way: Way, recordings: list[Steps]) -> Made:
        """Make an edit from recordings that `record` made."""
        canvas = self._canvas(edit)
        request = self._start(edit, canvas)
        branches = 1 if len(recordings) > 1 else 2
        tables = make_tables(widened(canvas.active, way.dilate), self._program.paddings)
        part = Part(tables, branches, live_norms=way.live_norms)
        batch = Batch(self._program, [part] * len(recordings))
        projected = self._sparse.project_text(request.conditions)
        began = time.perf_counter()
        while not request.finished:
            step = request.step
            predict: Any = self._unet.predict
            if not way.dense_at(step):
                source = way.storage.source(step)
                caches: list[Cache] = [StepCache(r[source]) for r in recordings]
                predict = partial(self._predict, batch, projected, caches)
            tick([request], predict, 1)
        return self._finish(request, edit, began)

    @torch.inference_mode()
    def record(self, edit: Edit, storage: Storage, own_prompt: bool) -> list[Steps]:
        """The recordings of an edit's image for `Way`s with these options."""
        canvas = self._canvas(edit)
        sampler = self._sampler(replace(edit, seed=TEMPLATE_SEED))
        prompts = ["", edit.prompt] if own_prompt else [""]
        return [self._record(edit, canvas, sampler, prompt, storage) for prompt in prompts]

    def _record(
        self, edit: Edit, canvas: Canvas, sampler: Sampler, prompt: str, storage: Storage
    ) -> Steps:
        conditions = self._conditions(edit, [prompt])
        networks, recording = self._networks, Steps()
        sites = [s for s in self._program.sites if s.name != "halo.conv_in"]
        for step in storage.kept(edit.steps):
            inputs = {
                "sample": sampler.template_input(canvas.clean, canvas.noise, step),
                "timestep": sampler.timesteps[[step]].float(),
                **conditions,
            }
            arrays, _ = record(networks.encoder, networks.decoder, inputs, sites=sites)
            recording[step] = pack({k: v[0] for k, v in arrays.items()}, storage.kind)
        return recording

    def _predict(
        self,
        batch: Batch,
        projected: Any,
        caches: list[Cache],
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditions: object,
    ) -> torch.Tensor:
        rows = self._sparse.predict(batch, sample, timestep, projected, batch.cached(caches))
        return batch.scatter(rows, torch.zeros_like(sample))

    def _canvas(self, edit: Edit) -> Canvas:
        latents = self._manifest.latents
        clean = encode_template(self._networks.vae, edit.image, latents.scale)
        return canvas_of(clean, torch.from_numpy(active_latents(edit.mask, latents.pixels)))

    def _start(self, edit: Edit, canvas: Canvas) -> Running:
        height, width = edit.mask.shape
        plan = Plan(
            slot=0,
            ticket=1,
            job_id="",
            seed=edit.seed,
            steps=edit.steps,
            guidance=edit.guidance,
            width=width,
            height=height,
            scheduler=self._manifest.defaults.scheduler,
            started=0.0,
        )
        conditions = self._conditions(edit, ["", edit.prompt])
        _, channels, rows, columns = canvas.clean.shape
        shape = (channels, rows, columns)
        return start(plan, conditions, self._sampler(edit), shape=shape, canvas=canvas)

    def _sampler(self, edit: Edit) -> Sampler:
        name, config = self._manifest.defaults.scheduler, self._bundle.scheduler_config
        return Sampler(name, config, steps=edit.steps, seed=edit.seed)

    def _conditions(self, edit: Edit, prompts: list[str]) -> Any:
        text = embed(self._encoders, prompts)
        height, width = edit.mask.shape
        return conditions_of(
            text.hidden, text.pooled, width=width, height=height, variant=self._variant
        )

    def _finish(self, request: Running, edit: Edit, began: float) -> Made:
        milliseconds = 1e3 * (time.perf_counter() - began)
        if request.error is not None:
            raise request.error
        picture = decode_latents(self._decoder, request.latents, self._manifest.latents.scale)[0]
        return Made(paste(picture, edit.image, edit.mask), milliseconds)

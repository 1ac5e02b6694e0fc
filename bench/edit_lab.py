"""Dense and sparse edits in this process, with all options free, for `bench/edit_quality.py`.

Uses the same engines, samplers and sparse inputs as the server, and LoRAs by refit. Recordings stay
in memory.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.lab_controls import LabControls
from bench.lab_loras import LabLoras
from tessera.adapters.recorded import RecordedAdapters
from tessera.codec.masks import active_latents, paste
from tessera.codec.text import TextEncoder, embed
from tessera.codec.vae import decode_latents, encode_template
from tessera.contract import SPARSE_GRAPHS
from tessera.controls.recorded import RecordedControls, RecordingControls
from tessera.denoise.canvas import TEMPLATE_SEED, Canvas, canvas_of
from tessera.denoise.opening import HALVES
from tessera.denoise.running import Running, RunningControl, start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tessera.denoise.unet import Join, UNet, conditions_of
from tessera.edits.state import widened
from tessera.engines.bundle import Bundle
from tessera.plan import ControlUse, Plan
from tessera.requests.request import Lora
from tessera.shared.settings import AdapterSettings
from tessera.sparse.batch import Batch, Cache, Part
from tessera.sparse.engines import SparseUNetEngines
from tessera.sparse.record import record
from tessera.sparse.tables import level_sizes, make_tables
from tessera.templates.cache import StepCache
from tessera.templates.keys import recorded_controls
from tessera.templates.nearest import distance, vector_of
from tessera.templates.packing import pack
from tessera.templates.recorder import Networks, open_networks
from tessera.templates.storage import Storage
from tessera.types import Array, Conditions, Tensors
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
        dense_steps: further steps that are dense.
    """

    storage: Storage = EXACT
    live_norms: bool = True
    own_prompt: bool = False
    dilate: int = 0
    dense_first: int = 0
    dense_every: int = 0
    dense_steps: frozenset[int] = frozenset()

    def dense_at(self, step: int) -> bool:
        """Whether a step is dense."""
        every = bool(self.dense_every) and step % self.dense_every == 0
        return every or step < self.dense_first or step in self.dense_steps


@dataclass(frozen=True)
class Edit:
    """The inputs of one edit. A ControlNet is named by `control`; its image has the size of the
    edit's.
    """

    image: Array
    mask: Array
    prompt: str
    seed: int = 1
    steps: int = 20
    guidance: float = 4.0
    control: str = ""
    control_image: Array | None = None


@dataclass(frozen=True)
class Made:
    """The result of an edit.

    Attributes:
        image: its pixels.
        milliseconds: of denoising.
        computed: tokens of all steps, as a share of those of the dense edit.
    """

    image: Array
    milliseconds: float
    computed: float = 1.0


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
        self._graphs = {name: engine(name) for name in (*HALVES, *SPARSE_GRAPHS)}
        halves = [self._graphs[name] for name in HALVES]
        self._unet = UNet(*halves, max_rows=rows)
        self._sparse = SparseUNetEngines(*(self._graphs[name] for name in SPARSE_GRAPHS))
        self._decoder = engine("vae_decoder")
        self._controls = LabControls(self._bundle)
        self._keys = itertools.count()
        self._text = {name: engine(name) for name in self._variant.text_encoders}
        names = zip(self._variant.tokenizers, self._text.items(), strict=True)
        self._encoders = [
            TextEncoder(self._bundle.tokenizer(f), text, width=self._bundle.text_width(n))
            for f, (n, text) in names
        ]

    @cached_property
    def _networks(self) -> Networks:
        adapters = partial(RecordedAdapters, self._bundle, AdapterSettings())
        return open_networks(self._bundle, adapters)

    @cached_property
    def _loras(self) -> LabLoras:
        return LabLoras(self._bundle, self._text, self._graphs)

    def adapt(self, loras: Sequence[Lora]) -> None:
        """Put LoRAs into the text encoders and the UNet of edits."""
        self._loras.apply(loras)

    def adapt_recordings(self, loras: Sequence[Lora]) -> None:
        """Put LoRAs into the UNet that is recorded."""
        self._networks.adapters.apply(self._loras.of_unet(loras))

    @cached_property
    def _program(self) -> Any:
        return self._bundle.outline("unet").program

    @torch.inference_mode()
    def dense(self, edit: Edit) -> Made:
        """Make an edit with the dense UNet."""
        request = self._start(edit, self._canvas(edit))
        began = time.perf_counter()
        while not request.finished:
            tick([request], self._unet.predict, 1, controls=self._controls.fanout)
        return self._finish(request, edit, began)

    @torch.inference_mode()
    def sparse(self, edit: Edit, way: Way, recordings: list[Steps]) -> Made:
        """Make an edit from recordings that `record` made."""
        canvas = self._canvas(edit)
        request = self._start(edit, canvas)
        branches = 1 if len(recordings) > 1 else 2
        mask = widened(canvas.active, way.dilate)
        tables = make_tables(mask, self._program.paddings)
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
            tick([request], predict, 1, controls=self._controls.fanout)
        dense = sum(map(way.dense_at, range(edit.steps))) / edit.steps
        computed = dense + (1 - dense) * float(mask.mean())
        return replace(self._finish(request, edit, began), computed=computed)

    @torch.inference_mode()
    def draw(self, prompt: str, seed: int, *, steps: int = 20) -> Array:
        """A whole image of the bundle's usual size."""
        defaults = self._manifest.defaults
        blank = np.zeros((defaults.height, defaults.width, 3), np.uint8)
        edit = Edit(blank, blank[..., 0], prompt, seed, steps)
        request = self._start(edit, None)
        while not request.finished:
            tick([request], self._unet.predict, 1)
        return self._picture(request)

    @torch.inference_mode()
    def distance(self, edit: Edit, prompt: str) -> float:
        """How far another prompt is from an edit's, as servers measure it."""
        hidden = self._conditions(edit, [edit.prompt, prompt, ""])["encoder_hidden_states"]
        return distance(*map(vector_of, hidden))

    @torch.inference_mode()
    def record(self, edit: Edit, storage: Storage, prompts: Sequence[str] = ("",)) -> list[Steps]:
        """The recordings of an edit's image, one for each prompt, with the edit's ControlNet.
        `sparse` takes one for both branches, or one for each, the negative branch's first.
        """
        canvas = self._canvas(edit)
        sampler = self._sampler(replace(edit, seed=TEMPLATE_SEED))
        return [self._record(edit, canvas, sampler, prompt, storage) for prompt in prompts]

    def _record(
        self, edit: Edit, canvas: Canvas, sampler: Sampler, prompt: str, storage: Storage
    ) -> Steps:
        conditions = self._conditions(edit, [prompt])
        networks, recording = self._networks, Steps()
        sites = [s for s in self._program.sites if s.name != "halo.conv_in"]
        controlled = self._recorded_controls(edit, conditions)
        for step in storage.kept(edit.steps):
            inputs = {
                "sample": sampler.template_input(canvas.clean, canvas.noise, step),
                "timestep": sampler.timesteps[[step]].float(),
                **conditions,
            }
            join = controlled.start([step], inputs["sample"], inputs["timestep"])
            halves = networks.encoder, networks.decoder
            arrays, _ = record(*halves, inputs, sites=sites, join=join)
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
        join: Join | None = None,
    ) -> torch.Tensor:
        sizes = level_sizes((sample.shape[2], sample.shape[3]), self._program.paddings)
        places = self._program.residuals.values()
        shapes = [torch.Size((channels, *sizes[level])) for level, channels in places]
        maps = join.maps(shapes, len(sample)) if join else None
        cached = batch.cached(caches)
        rows = self._sparse.predict(batch, sample, timestep, projected, cached, maps)
        return batch.scatter(rows, torch.zeros_like(sample))

    def _canvas(self, edit: Edit) -> Canvas:
        latents = self._manifest.latents
        clean = encode_template(self._networks.vae, edit.image, latents)
        return canvas_of(clean, torch.from_numpy(active_latents(edit.mask, latents.pixels)))

    def _start(self, edit: Edit, canvas: Canvas | None) -> Running:
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
        latents = self._manifest.latents
        shape = (latents.channels, height // latents.pixels, width // latents.pixels)
        controls = self._controls_of(edit)
        sampler = self._sampler(edit)
        return start(plan, conditions, sampler, shape=shape, canvas=canvas, controls=controls)

    def _controls_of(self, edit: Edit) -> tuple[RunningControl, ...]:
        if edit.control_image is None:
            return ()
        use, image = ControlUse(edit.control, 1.0, 0.0, 1.0), torch.from_numpy(edit.control_image)
        return (RunningControl(use, next(self._keys), image),)

    def _recorded_controls(self, edit: Edit, conditions: Conditions) -> RecordingControls:
        """Of a recording for edits with the same ControlNet."""
        uses = [control.use for control in self._controls_of(edit)]
        images = {"": edit.image if edit.control_image is None else edit.control_image}
        recorded = RecordedControls(self._controls.ask, images)
        return recorded.begin(recorded_controls(uses, range(edit.steps)), conditions)

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
        return Made(paste(self._picture(request), edit.image, edit.mask), milliseconds)

    def _picture(self, request: Running) -> Array:
        if request.error is not None:
            raise request.error
        return decode_latents(self._decoder, request.latents, self._manifest.latents)[0]

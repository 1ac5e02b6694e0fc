"""Dense and sparse edits in this process, by the code and the engines that serve a bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from tessera.adapters.recorded import RecordedAdapters
from tessera.codec.masks import active_latents, paste
from tessera.codec.text import TextEncoder, embed
from tessera.codec.vae import decode_latents, encode_masked, encode_nothing, encode_template
from tessera.contract import EditQuality
from tessera.denoise.canvas import TEMPLATE_SEED, Canvas, canvas_of
from tessera.denoise.opening import open_unet
from tessera.denoise.running import Running, start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tessera.denoise.unet import conditions_of, embed_guidance
from tessera.edits.opening import open_steps
from tessera.edits.quality import Policies, Policy
from tessera.edits.state import widened
from tessera.engines.bundle import Bundle
from tessera.errors import BundleError
from tessera.plan import Plan
from tessera.shared.settings import AdapterSettings, TemplateSettings
from tessera.templates.nearest import Nearness, distance, vector_of
from tessera.templates.recorder import Recorder
from tessera.templates.store import RecordingKey, TemplateStore
from tessera.templates.texts import ZEROED, text_id, zeroed
from tessera.types import Array, Conditions
from tessera.variants import VARIANTS

RECORDINGS = 3
"""Of one case that are kept at a time, beside one of SDXL's zeros: the disk's budget has room for
one more, and those with prompts take half at most."""


@dataclass(frozen=True)
class Edit:
    """The inputs of one edit: a picture (h, w, 3) and a mask (h, w) of UINT8."""

    image: Array
    mask: Array
    prompt: str
    seed: int


class Editor:
    """Makes edits.

    Args:
        bundle: the bundle.
        folder: where templates are kept.

    Raises:
        BundleError: the bundle has no graphs of sparse edits.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        manifest = bundle.manifest
        if not manifest.can_be_sparse:
            raise BundleError(f"{bundle.folder} has no graphs of sparse edits: nothing to measure")
        self._manifest, self._config = manifest, bundle.scheduler_config
        self._variant = VARIANTS[manifest.variant]
        settings = TemplateSettings(folder=folder)
        size = min(settings.largest, settings.disk // (RECORDINGS + 1))
        self._store = TemplateStore(folder, budget=settings.disk)
        adapters = partial(RecordedAdapters, bundle, AdapterSettings())
        self._recorder = Recorder.of(bundle, self._store, budget=size, adapters=adapters)
        dense = open_unet(bundle)
        self._unet, self._steps = dense.unet, open_steps(bundle, dense, settings)
        engine = bundle.engine
        self._vae = {name: engine(name) for name in ("vae_encoder", "vae_decoder")}
        self._encoders = [
            TextEncoder(bundle.tokenizer(folder), engine(name), width=bundle.text_width(name))
            for folder, name in zip(
                self._variant.tokenizers, self._variant.text_encoders, strict=True
            )
        ]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of pictures."""
        return self._manifest.defaults.width, self._manifest.defaults.height

    @torch.inference_mode()
    def draw(self, prompt: str, seed: int) -> Array:
        """A picture."""
        plan, nothing = self._plan(seed), None
        if self._manifest.inpaints:
            nothing = encode_nothing(self._vae["vae_encoder"], *self.size, self._manifest.latents)
        return self._finished(self._begun(plan, self._conditions(plan, prompt), None, nothing))

    @torch.inference_mode()
    def dense(self, edit: Edit) -> Array:
        """An edit without recordings. An inpainting UNet draws all latents, as it is served."""
        request, _ = self._of(edit, self._plan(edit.seed), held=not self._manifest.inpaints)
        return paste(self._finished(request), edit.image, edit.mask)

    @torch.inference_mode()
    def record(self, image: Array, prompt: str) -> tuple[str, ...]:
        """Record a picture with a prompt, and with the negative one of edits that name none.

        Returns:
            What edits that shall read these have as `Plan.texts`.
        """
        template, _ = self._store.pictures.put(image)
        defaults = self._manifest.defaults
        key = RecordingKey(
            *(self._manifest.digest, template, defaults.scheduler, defaults.steps, TEMPLATE_SEED)
        )
        text = text_id(prompt)
        negative = ZEROED if self._manifest.zero_negative and text else ""
        texts = (negative, text) if self._plan(0).guided else (text,)
        embedded = embed(self._encoders, [prompt])
        both = {"hidden": embedded.hidden[0], "pooled": embedded.pooled[0]}
        for each in dict.fromkeys(texts):
            own = key.with_text(each)
            if each:
                self._store.texts.put(own.digest, zeroed(both) if each == ZEROED else both)
            self._recorder.ensure(own)
        return texts

    @torch.inference_mode()
    def distance(self, prompt: str, other: str) -> float:
        """How far another prompt is, as servers measure it that look for a near recording."""
        hidden = embed(self._encoders, [prompt, other, ""]).hidden
        return distance(*map(vector_of, hidden))

    @torch.inference_mode()
    def sparse(self, edit: Edit, texts: tuple[str, ...], policy: Policy) -> Array:
        """An edit by a policy from what `record` has recorded.

        Raises:
            BundleError: it was not sparse.
        """
        template, _ = self._store.pictures.put(edit.image)
        mode = {"mode": "sparse", "quality": EditQuality.BALANCED, "mask_ratio": 1.0}
        plan = self._plan(edit.seed, template=template, texts=texts, **mode)
        request, canvas = self._of(edit, plan)
        pairs = product((EditQuality.BALANCED, EditQuality.BEST), Nearness)
        self._steps.policies = Policies(dict.fromkeys(pairs, ((1.0, (policy,)),)))
        request.sparse = self._steps.admit(plan, canvas, request.conditions)
        picture = self._finished(request)
        if not request.stats.sparse_ticks:
            raise BundleError("an edit was dense: its recording could not be read")
        return paste(picture, edit.image, edit.mask)

    def tokens(self, edit: Edit, margin: int) -> float:
        """The share of the tokens that a sparse step computes."""
        active = torch.from_numpy(active_latents(edit.mask, self._manifest.latents.pixels))
        return float(widened(active[None, None], margin).mean())

    def forget(self) -> None:
        """Remove all recordings."""
        for recording in self._store.recordings():
            self._steps.memory.drop(recording.key.digest)
            self._store.remove(recording)

    def _plan(self, seed: int, **more: object) -> Plan:
        defaults = self._manifest.defaults
        return Plan(
            slot=0,
            ticket=0,
            job_id="probe",
            seed=seed,
            steps=defaults.steps,
            guidance=defaults.guidance,
            width=defaults.width,
            height=defaults.height,
            scheduler=defaults.scheduler,
            started=0.0,
            embedded=self._manifest.guidance_width > 0,
            **more,  # type: ignore[arg-type]
        )

    def _of(self, edit: Edit, plan: Plan, *, held: bool = True) -> tuple[Running, Canvas]:
        latents, engine = self._manifest.latents, self._vae["vae_encoder"]
        clean = encode_template(engine, edit.image, latents)
        active = torch.from_numpy(active_latents(edit.mask, latents.pixels))
        canvas = replace(canvas_of(clean, active), held=held)
        masked = None
        if self._manifest.inpaints:
            masked = encode_masked(engine, edit.image, edit.mask, latents)
        conditions = self._conditions(plan, edit.prompt)
        return self._begun(plan, conditions, canvas, masked), canvas

    def _begun(
        self,
        plan: Plan,
        conditions: Conditions,
        canvas: Canvas | None,
        masked: torch.Tensor | None,
    ) -> Running:
        latents = self._manifest.latents
        sampler = Sampler(plan.scheduler, self._config, steps=plan.steps, seed=plan.seed)
        shape = (latents.channels, plan.height // latents.pixels, plan.width // latents.pixels)
        whole = None if masked is None else masked[None]
        return start(plan, conditions, sampler, shape=shape, canvas=canvas, masked=whole)

    def _conditions(self, plan: Plan, prompt: str) -> Conditions:
        prompts = ["", prompt] if plan.guided else [prompt]
        text = embed(self._encoders, prompts)
        if plan.guided and self._manifest.zero_negative:
            text = text.zeroed(0)
        guidance = embed_guidance(plan.guidance, self._manifest.guidance_width)
        return conditions_of(
            text.hidden,
            text.pooled,
            width=plan.width,
            height=plan.height,
            variant=self._variant,
            guidance=guidance,
        )

    def _finished(self, request: Running) -> Array:
        while not request.finished:
            tick([request], self._unet.predict, request.step + 1, sparse=self._steps)
        if request.error is not None:
            raise BundleError(f"an edit failed: {request.error}") from request.error
        return decode_latents(
            self._vae["vae_decoder"], request.latents, self._manifest.latents
        )[0]  # fmt: skip

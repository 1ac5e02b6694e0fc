"""`encode`: checks a request, puts its job on the board, turns its prompts into embeddings and an
edit's image into latents, and prepares the images of ControlNets.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from tessera import trace
from tessera.adapters.inversion import Inversions
from tessera.adapters.text_encoders import TextEncoderAdapters
from tessera.codec.fill import blurred, noise_like
from tessera.codec.masks import active_latents, latent_strengths, prompt_weights
from tessera.codec.text import Embeddings, TextEncoder, embed
from tessera.codec.vae import encode_masked, encode_nothing, encode_template
from tessera.codec.words import Words
from tessera.contract import MaskFill, checksum
from tessera.edits.measured import policies_of
from tessera.edits.recordings import EditRecordings
from tessera.engines.bundle import Bundle
from tessera.engines.timed import TimedEngine
from tessera.errors import TimedOut
from tessera.plan import Plan
from tessera.requests.controls import identified, prepared
from tessera.requests.edit import EditChoice
from tessera.requests.fields import Inputs
from tessera.requests.job_id import given_job_id
from tessera.requests.memory import held, request_memory
from tessera.requests.parameters import HELD, lora_policy_of, priority_of
from tessera.requests.request import Request, read_request
from tessera.shared.board import Board
from tessera.shared.machine import memory_share
from tessera.shared.metrics import Kind
from tessera.shared.settings import ServerSettings
from tessera.shared.sweep import sweep_boards
from tessera.templates.pictures import find_picture
from tessera.templates.store import TemplateStore
from tessera.templates.texts import ZEROED, text_id
from tessera.triton import pb
from tessera.triton.ending import Endings
from tessera.triton.handing import check_given, tensor_of_plan
from tessera.types import Array
from tessera.variants import VARIANTS

SIZES = 8
"""For how many sizes of pictures what a generation tells an inpainting UNet is kept."""


class TritonPythonModel:
    """First member of the ensemble: inputs of the contract -> PLAN, TEXT, POOLED, CLEAN, ACTIVE,
    MASKED, CONTROL, and an edit's PIXELS.
    """

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the bundle and the board."""
        torch.set_num_threads(1)
        sweep_boards()
        settings = ServerSettings.from_environment()
        trace.write_to(settings.trace)
        bundle = Bundle.of(settings)
        self._manifest = bundle.manifest
        self._policies, _ = policies_of(bundle.folder, bundle.manifest.digest)
        self._board = Board(settings.board)
        self._endings = Endings(settings, self._board)
        self._memory = request_memory(bundle)
        self._held = memory_share()
        self._max_queue = settings.max_queue
        self._log_prompts = settings.log_prompts
        self._quality = settings.edit_quality
        self._store = TemplateStore(settings.templates.folder, budget=settings.templates.disk)
        variant = VARIANTS[bundle.manifest.variant]
        self._engines = [TimedEngine(bundle.engine(name)) for name in variant.text_encoders]
        self._vae = TimedEngine(bundle.engine("vae_encoder"))
        grey = partial(encode_nothing, self._vae, space=bundle.manifest.latents)
        self._all_masked = lru_cache(SIZES)(grey)
        self._adapters = TextEncoderAdapters(
            bundle, dict(zip(variant.text_encoders, self._engines, strict=True)), settings
        )
        self._encoders = [
            TextEncoder(bundle.tokenizer(folder), engine, width=bundle.text_width(graph))
            for folder, engine, graph in zip(
                variant.tokenizers, self._engines, variant.text_encoders, strict=True
            )
        ]
        widths = bundle.text_widths(variant.text_encoders)
        self._inversions = Inversions(bundle.folder, settings.adapters.folders, widths)

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        with trace.span("execute"):
            return pb.answer_each(requests, self._encode)

    def _encode(self, message: pb.Request) -> list[pb.TensorHandle]:
        started, inputs = time.monotonic(), pb.arrays(message)
        kind = Kind.EDIT if "MASK" in inputs else Kind.GENERATE
        try:
            check_given(message, inputs)
            request, plan = self._open(message, inputs, started)
        except Exception as error:
            self._endings.refused(kind, error, given_job_id(inputs))
            raise
        try:
            tensors = self._prepare(request, plan)
        except Exception as error:
            self._endings.failed(plan, error)
            raise
        self._board.hand_on(plan.slot, plan.ticket)
        return tensors

    def _open(self, message: pb.Request, inputs: Inputs, started: float) -> tuple[Request, Plan]:
        """Check a request and put its job on the board."""
        parameters = pb.parameters(message)
        find = partial(find_picture, self._store.pictures, patience=self._store.patience)
        request = read_request(inputs, self._manifest, find, quality=self._quality)
        pb.check_job_id(message, request.job_id)
        self._memory.check(request)
        policy, priority = lora_policy_of(parameters), priority_of(parameters)
        deadline = _deadline(message, started)
        if 0 < deadline < time.monotonic():
            raise TimedOut(pb.EXPIRED)
        self._board.check_room(self._max_queue, priority)
        memory = held(request, inputs.values())
        if pb.is_call(message):  # nobody else may say so
            memory += parameters.get(HELD, 0)
        self._board.check_memory(memory, self._held)
        edit = request.edit
        steps = request.steps - (edit.first_step if edit else 0)
        adapted = self._adapters.apply(request.loras, policy=policy, steps=steps)
        urgency: dict[str, Any] = {
            "deadline": deadline,
            "priority": priority,
        }
        kind = Kind.EDIT if edit else Kind.GENERATE
        place = self._board.open(request.job_id, steps, kind=kind, held=memory, **urgency)
        plan = _plan(request, *place, started, embedded=self._manifest.guidance_width > 0)
        prompts = (request.prompt, request.negative_prompt or "") if self._log_prompts else ()
        return request, dataclasses.replace(plan, **adapted, **urgency, prompts=prompts)

    def _prepare(self, request: Request, plan: Plan) -> list[pb.TensorHandle]:
        engines = [*self._engines, self._vae]
        before = sum(engine.spent_ms for engine in engines)
        words = self._inversions.words()
        embeddings = self._embeddings(request, plan.guided, words)
        tokens = self._encoders[0].chunks(request.prompt, request.syntax, words)
        negative = (request.negative_prompt or "") if plan.guided else ""
        texts = self._texts(request, plan, words)
        seed, prompts = request.seed, len(request.prompts)
        canvas = self._canvas(request.edit, seed, prompts) if request.edit else _NO_CANVAS
        images = _control_images(request)
        tensors: dict[str, Array] = {
            "TEXT": embeddings.hidden.numpy(),
            "POOLED": embeddings.pooled.numpy(),
            **canvas,
            "MASKED": self._masked(request),
            "CONTROL": images,
        }
        if plan.mode != "dense" and self._manifest.can_be_sparse:  # then recordings name them
            plan = dataclasses.replace(plan, controls=identified(plan.controls, images))
        plan = dataclasses.replace(
            plan,
            shapes=self._shapes(request, tensors),
            sums={name: checksum(array) for name, array in tensors.items()},
            texts=texts,
            recorded=request.edit is not None
            and self._recordings.look_up(request.edit, plan, texts, embeddings),
            encode_ms=1e3 * (time.monotonic() - plan.started),
            engine_ms=sum(engine.spent_ms for engine in engines) - before,
            prompt_tokens=tokens.tokens,
            prompt_tokens_dropped=tokens.dropped,
            prompt_chunks=embeddings.hidden.shape[1] // len(tokens.ids[0]),
            words=tuple(words.found_in("\n".join([*request.prompts, negative]))),
        )
        return [tensor_of_plan(plan), *(pb.tensor(n, array) for n, array in tensors.items())]

    def _shapes(self, request: Request, tensors: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
        """Of everything that goes with the plan, here and later."""
        latents = self._manifest.latents
        height, width = request.height // latents.pixels, request.width // latents.pixels
        shapes = {name: array.shape for name, array in tensors.items()}
        shapes["LATENTS"] = (latents.channels, height, width)
        if request.edit:
            shapes["MASK"] = request.edit.mask.shape
        return shapes

    @property
    def _recordings(self) -> EditRecordings:
        return EditRecordings(self._store, self._manifest, self._policies, pb.log)

    def _texts(self, request: Request, plan: Plan, words: Words) -> tuple[str, ...]:
        """What an edit's branches are recorded by, in their order; nothing of a generation."""
        if request.edit is None:
            return ()
        of_text = partial(text_id, syntax=request.syntax, loras=self._adapters.in_text)
        skip, negative = request.clip_skip, request.negative_prompt or ""
        own = [of_text(p, clip_skip=skip, words=words.versions_in(p)) for p in request.prompts]
        if not plan.guided:
            return tuple(own)
        zero = self._zeroes(request)
        return (ZEROED if zero else of_text(negative, words=words.versions_in(negative)), *own)

    def _zeroes(self, request: Request) -> bool:
        """Whether a negative branch has zeros instead of embeddings."""
        return self._manifest.zero_negative and request.negative_prompt is None

    def _canvas(self, edit: EditChoice, seed: int, prompts: int) -> dict[str, Array]:
        latents = self._manifest.latents
        active = _active(edit, latents.pixels)
        clean = encode_template(self._vae, edit.image, latents)
        if edit.first_step and edit.fill != MaskFill.ORIGINAL:  # else they start from noise alone
            inside = self._fill(edit, clean, seed)
            clean = torch.where(torch.from_numpy(active > 0), inside, clean)
        content = clean.numpy()
        if edit.owners is not None:
            weights = prompt_weights(edit.owners, edit.mask, prompts, latents.pixels)
            content = np.concatenate([content, weights])
        return {"CLEAN": content, "ACTIVE": active, "PIXELS": edit.image}

    def _fill(self, edit: EditChoice, clean: torch.Tensor, seed: int) -> torch.Tensor:
        """Latents (c, h, w) that the masked part starts from."""
        if edit.fill == MaskFill.NOISE:
            return noise_like(clean, seed)
        return encode_template(self._vae, blurred(edit.image, edit.mask), self._manifest.latents)

    def _masked(self, request: Request) -> Array:
        """What an inpainting UNet takes beside the latents (1 + c, h, w)."""
        if not self._manifest.inpaints:
            return _NOT_MASKED
        edit, space = request.edit, self._manifest.latents
        if edit:
            return encode_masked(self._vae, edit.image, edit.mask, space).numpy()
        return self._all_masked(request.width, request.height).numpy()

    def _embeddings(self, request: Request, guided: bool, words: Words) -> Embeddings:
        """Of the negative prompt, if there is to be such a branch, and the prompt. As in diffusers'
        pipelines, the negative prompt skips no layers.
        """
        prompts = [*([request.negative_prompt or ""] if guided else []), *request.prompts]
        skips = [*([0] if guided else []), *([request.clip_skip] * len(request.prompts))]
        both = embed(self._encoders, prompts, request.syntax, clip_skips=skips, words=words)
        if not guided:
            return both
        return both.zeroed(0) if self._zeroes(request) else both


_NOT_MASKED: Array = np.zeros((1, 1, 1), np.float32)
_NO_CANVAS: dict[str, Array] = {
    "CLEAN": np.zeros((1, 1, 1), np.float32),
    "ACTIVE": np.zeros((1, 1), np.float32),
}
"""What a generation carries where an edit has its template: Triton batches requests only if they
carry the same tensors."""


def _active(edit: EditChoice, pixels: int) -> Array:
    """ACTIVE: the mask of latents, or the strengths of a soft one; FP32."""
    if edit.strengths is None:
        return active_latents(edit.mask, pixels).astype(np.float32)
    return latent_strengths(edit.strengths, pixels)


def _deadline(message: pb.Request, started: float) -> float:
    """When a request is not wanted any more; 0 if it always is."""
    return started + 1e-6 * pb.timeout(message) if pb.timeout(message) else 0.0


def _control_images(request: Request) -> Array:
    mask = request.edit.mask if request.edit else None
    return prepared(request.controls, request.width, request.height, mask)


def _plan(
    request: Request, slot: int, ticket: int, started: float, *, embedded: bool = False
) -> Plan:
    edit = request.edit
    of_edit: dict[str, Any] = {}
    if edit is not None:
        of_edit = {
            "first_step": edit.first_step,
            "mode": edit.mode,
            "template": edit.template,
            "quality": edit.quality,
            "mask_ratio": edit.mask_ratio,
            "soft": edit.strengths is not None,
            "feather": edit.feather,
            "tone": edit.tone,
            "prompt_count": len(request.prompts),
        }
    return Plan(
        slot=slot,
        ticket=ticket,
        job_id=request.job_id,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        embedded=embedded,
        width=request.width,
        height=request.height,
        scheduler=request.scheduler,
        clip_skip=request.clip_skip,
        started=started,
        controls=tuple(control.use for control in request.controls),
        prepared=tuple(control.preparation.report for control in request.controls),
        **of_edit,
    )

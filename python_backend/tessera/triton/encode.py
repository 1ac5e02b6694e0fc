"""`encode`: checks a request, puts its job on the board, turns its prompts into embeddings and an
edit's image into latents, and prepares the images of ControlNets.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any

import numpy as np
import torch

from tessera import trace
from tessera.adapters.text_encoders import TextEncoderAdapters
from tessera.codec.masks import active_latents
from tessera.codec.text import Embeddings, TextEncoder, embed
from tessera.codec.vae import encode_template
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.engines.bundle import Bundle
from tessera.engines.timed import TimedEngine
from tessera.errors import Unavailable
from tessera.plan import Plan
from tessera.requests.controls import prepared
from tessera.requests.edit import EditChoice, dense_only
from tessera.requests.parameters import lora_policy_of
from tessera.requests.request import Request, read_request
from tessera.shared.board import Board, Phase, sweep_boards
from tessera.shared.settings import ServerSettings
from tessera.templates.pictures import find_picture
from tessera.templates.store import RecordingKey, TemplateStore
from tessera.triton import pb
from tessera.types import Array
from tessera.variants import VARIANTS


class TritonPythonModel:
    """First member of the ensemble: inputs of the contract -> PLAN, TEXT, POOLED, CLEAN, ACTIVE,
    CONTROL, and an edit's PIXELS.
    """

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the bundle and the board."""
        torch.set_num_threads(1)
        sweep_boards()
        settings = ServerSettings.from_environment()
        trace.write_to(settings.trace)
        bundle = Bundle.of(settings)
        self._manifest = bundle.manifest
        self._board = Board(settings.board)
        self._store = TemplateStore(settings.templates.folder, budget=settings.templates.disk)
        variant = VARIANTS[bundle.manifest.variant]
        self._engines = [TimedEngine(bundle.engine(name)) for name in variant.text_encoders]
        self._vae = TimedEngine(bundle.engine("vae_encoder"))
        self._adapters = TextEncoderAdapters(
            bundle, dict(zip(variant.text_encoders, self._engines, strict=True)), settings
        )
        folders = [bundle.tokenizer(name) for name in variant.tokenizers]
        self._encoders = [TextEncoder(f, e) for f, e in zip(folders, self._engines, strict=True)]

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        with trace.span("execute"):
            return pb.answer_each(requests, self._encode)

    def _encode(self, message: pb.Request) -> list[pb.TensorHandle]:
        started = time.time()
        request = read_request(
            pb.arrays(message), self._manifest, partial(find_picture, self._store.pictures)
        )
        policy = lora_policy_of(pb.parameters(message))
        edit = request.edit
        steps = request.steps - (edit.first_step if edit else 0)
        adapted = self._adapters.apply(request.loras, policy=policy, steps=steps)
        if edit and adapted.get("adapters"):
            request = dataclasses.replace(request, edit=dense_only(edit))
        slot, ticket = self._board.open(request.job_id, steps)
        try:
            plan = dataclasses.replace(_plan(request, slot, ticket, started), **adapted)
            return self._prepare(request, plan)
        except Exception:
            self._board.close(slot, ticket, Phase.FAILED)
            raise

    def _prepare(self, request: Request, plan: Plan) -> list[pb.TensorHandle]:
        engines = [*self._engines, self._vae]
        before = sum(engine.spent_ms for engine in engines)
        embeddings = self._embeddings(request, plan.guided)
        canvas = self._canvas(request.edit) if request.edit else _NO_CANVAS
        plan = dataclasses.replace(
            plan,
            recorded=self._look_up(request, request.edit) if request.edit else False,
            encode_ms=1e3 * (time.time() - plan.started),
            engine_ms=sum(engine.spent_ms for engine in engines) - before,
            prompt_tokens_dropped=self._encoders[0].dropped_tokens(request.prompt),
        )
        return [
            pb.tensor("PLAN", plan.to_json()),
            pb.tensor("TEXT", embeddings.hidden.numpy()),
            pb.tensor("POOLED", embeddings.pooled.numpy()),
            *(pb.tensor(name, array) for name, array in canvas.items()),
            pb.tensor("CONTROL", prepared(request.controls, request.width, request.height)),
        ]

    def _look_up(self, request: Request, edit: EditChoice) -> bool:
        """Whether the template has been recorded; if not, and nobody waits for it, somebody
        shall.
        """
        if edit.mode == "dense" or not self._manifest.can_be_sparse:
            return False
        key = RecordingKey(
            self._manifest.digest, edit.template, request.scheduler, request.steps, TEMPLATE_SEED
        )
        recording = self._store.find(key)
        if recording is not None:
            self._store.read_ahead(recording, recording.storage.kept(request.steps))
            return True
        try:
            self._store.keep(edit.image)
            if edit.mode == "auto":
                self._store.want(key)
        except OSError as error:
            if edit.mode == "sparse":
                reason = error.strerror or str(error)
                raise Unavailable(f"template {edit.template} cannot be kept: {reason}") from error
            pb.log(f"template {edit.template} cannot be kept: {error}")
        return False

    def _canvas(self, edit: EditChoice) -> dict[str, Array]:
        latents = self._manifest.latents
        return {
            "CLEAN": encode_template(self._vae, edit.image, latents.scale).numpy(),
            "ACTIVE": active_latents(edit.mask, latents.pixels),
            "PIXELS": edit.image,
        }

    def _embeddings(self, request: Request, guided: bool) -> Embeddings:
        """Of the negative prompt, if there is to be such a branch, and the prompt."""
        if not guided:
            return embed(self._encoders, [request.prompt])
        both = embed(self._encoders, [request.negative_prompt or "", request.prompt])
        zero = self._manifest.zero_negative and request.negative_prompt is None
        return both.zeroed(0) if zero else both


_NO_CANVAS: dict[str, Array] = {
    "CLEAN": np.zeros((1, 1, 1), np.float32),
    "ACTIVE": np.zeros((1, 1), np.uint8),
}
"""What a generation carries where an edit has its template: Triton batches requests only if they
carry the same tensors."""


def _plan(request: Request, slot: int, ticket: int, started: float) -> Plan:
    edit = request.edit
    of_edit: dict[str, Any] = {}
    if edit is not None:
        of_edit = {
            "first_step": edit.first_step,
            "mode": edit.mode,
            "template": edit.template,
            "mask_ratio": edit.mask_ratio,
        }
    return Plan(
        slot=slot,
        ticket=ticket,
        job_id=request.job_id,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        width=request.width,
        height=request.height,
        scheduler=request.scheduler,
        started=started,
        controls=tuple(control.use for control in request.controls),
        prepared=tuple(control.preparation.report for control in request.controls),
        **of_edit,
    )

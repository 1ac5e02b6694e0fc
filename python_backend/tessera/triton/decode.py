"""`decode`: latents to pixels, an edit's pasted into its template, and the INFO that goes with
them.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from tessera import trace
from tessera.codec.masks import paste
from tessera.codec.vae import decode_latents
from tessera.contract import Info, Stats
from tessera.engines.bundle import Bundle
from tessera.engines.timed import TimedEngine
from tessera.plan import Plan
from tessera.shared.board import Board, Phase
from tessera.shared.settings import ServerSettings
from tessera.triton import pb


class TritonPythonModel:
    """Last member of the ensemble: PLAN, LATENTS, STATS, an edit's PIXELS and MASK -> IMAGE,
    INFO.
    """

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the bundle, the board and the VAE decoder's engine."""
        torch.set_num_threads(1)
        settings = ServerSettings.from_environment()
        trace.write_to(settings.trace)
        bundle = Bundle.of(settings)
        self._manifest = bundle.manifest
        self._engine = TimedEngine(bundle.engine("vae_decoder"))
        self._board = Board(settings.board)

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        with trace.span("execute"):
            return pb.answer_each(requests, self._decode)

    @torch.inference_mode()
    def _decode(self, request: pb.Request) -> list[pb.TensorHandle]:
        began, before = time.perf_counter(), self._engine.spent_ms
        inputs = pb.handles(request)
        plan = Plan.from_json(pb.text(inputs["PLAN"]))
        try:
            latents = pb.to_torch(inputs["LATENTS"])[None]
            image = decode_latents(self._engine, latents, self._manifest.latents.scale)[0]
            if "PIXELS" in inputs:
                template, mask = (inputs[name].as_numpy()[0] for name in ("PIXELS", "MASK"))
                image = paste(image, template, mask)
        except Exception:
            self._board.close(plan.slot, plan.ticket, Phase.FAILED)
            raise
        decode_ms = 1e3 * (time.perf_counter() - began)
        stats = Stats.from_json(pb.text(inputs["STATS"]))
        stats.engine_ms += plan.engine_ms + self._engine.spent_ms - before
        info = self._info(plan, stats, decode_ms)
        self._board.close(plan.slot, plan.ticket, Phase.DONE)
        return [pb.tensor("IMAGE", image), pb.tensor("INFO", info.to_json())]

    def _info(self, plan: Plan, stats: Stats, decode_ms: float) -> Info:
        return Info(
            **asdict(stats),
            job_id=plan.job_id,
            bundle=self._manifest.name,
            seed=plan.seed,
            steps=plan.steps,
            guidance=plan.guidance,
            width=plan.width,
            height=plan.height,
            scheduler=plan.scheduler,
            mask_ratio=plan.mask_ratio,
            template=plan.template or None,
            loras=list(plan.loras),
            controls=[
                asdict(use) | done for use, done in zip(plan.controls, plan.prepared, strict=True)
            ],
            prompt_tokens_dropped=plan.prompt_tokens_dropped,
            encode_ms=plan.encode_ms,
            decode_ms=decode_ms,
            total_ms=1e3 * (time.time() - plan.started),
        )

"""`decode`: latents to pixels, an edit's pasted into its template, and the INFO that goes with
them.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from tessera import trace
from tessera.codec.masks import paste, toned
from tessera.codec.vae import decode_latents
from tessera.contract import Info, MaskTone, Stats, checksum
from tessera.engines.bundle import Bundle
from tessera.engines.timed import TimedEngine
from tessera.plan import Plan
from tessera.requests.tensors import check_finite, check_whole
from tessera.shared.board import Board
from tessera.shared.settings import ServerSettings
from tessera.triton import pb
from tessera.triton.ending import Endings
from tessera.triton.handing import plan_of, stats_of, sums_in
from tessera.triton.metrics import Metrics, observe_picture
from tessera.types import Array


class TritonPythonModel:
    """Last member of the ensemble: PLAN, LATENTS, STATS, an edit's PIXELS and MASK -> IMAGE,
    INFO. A preview has LATENTS alone, and no INFO.
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
        self._endings = Endings(settings, self._board)
        self._worker = settings.worker
        self._metrics = Metrics()

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        with trace.span("execute"):
            return pb.answer_each(requests, self._decode)

    @torch.inference_mode()
    def _decode(self, request: pb.Request) -> list[pb.TensorHandle]:
        began, before = time.perf_counter(), self._engine.spent_ms
        inputs = pb.handles(request)
        if "PLAN" not in inputs:
            pb.check_call(request)
            with self._board.previewing():
                return [pb.tensor("IMAGE", self._picture(pb.to_torch(inputs["LATENTS"])[None]))]
        plan = plan_of(inputs, called=pb.is_call(request))
        try:
            self._board.take(plan)
            stats, arrays = self._checked(plan, request, inputs)
            image = self._picture(torch.from_numpy(arrays["LATENTS"]))
            if "MASK" in plan.shapes:
                template, mask = (arrays[name][0] for name in ("PIXELS", "MASK"))
                if plan.tone == MaskTone.MATCHED:
                    image = toned(image, template, mask)
                image = paste(image, template, mask, plan.feather)
            decode_ms = 1e3 * (time.perf_counter() - began)
            stats.engine_ms += plan.engine_ms + self._engine.spent_ms - before
            info = self._info(plan, stats, decode_ms, image_crc32=checksum(image))
        except Exception as error:
            self._endings.failed(plan, error)
            raise
        self._endings.done(plan, info)
        observe_picture(self._metrics, plan, info)
        return [pb.tensor("IMAGE", image), pb.tensor("INFO", info.to_json())]

    def _checked(
        self, plan: Plan, request: pb.Request, inputs: dict[str, pb.TensorHandle]
    ) -> tuple[Stats, dict[str, Array]]:
        """The stats, and copies of the other inputs, found to be as they have to be."""
        names: list[str] = [name for name in ("LATENTS", "PIXELS", "MASK") if name in plan.shapes]
        arrays: dict[str, Array] = {n: inputs[n].as_numpy().copy() for n in names if n in inputs}
        stats, latents = stats_of(plan, inputs)
        sums = {**plan.sums, "LATENTS": latents, **sums_in(request)}
        check_whole(arrays, plan.shapes, sums, names)
        check_finite(arrays, names)
        return stats, arrays

    def _picture(self, latents: torch.Tensor) -> Array:
        return decode_latents(self._engine, latents, self._manifest.latents)[0]

    def _info(self, plan: Plan, stats: Stats, decode_ms: float, *, image_crc32: int) -> Info:
        return Info(
            **asdict(stats),
            job_id=plan.job_id,
            bundle=self._manifest.name,
            worker=self._worker,
            seed=plan.seed,
            steps=plan.steps,
            guidance=plan.guidance,
            width=plan.width,
            height=plan.height,
            scheduler=plan.scheduler,
            mask_ratio=plan.mask_ratio,
            template=plan.template or None,
            edit_quality=plan.quality if plan.template else None,
            loras=list(plan.loras),
            controls=[
                use.report | done for use, done in zip(plan.controls, plan.prepared, strict=True)
            ],
            prompt_tokens=plan.prompt_tokens,
            prompt_tokens_dropped=plan.prompt_tokens_dropped,
            prompt_chunks=plan.prompt_chunks,
            clip_skip=plan.clip_skip,
            words=list(plan.words),
            regions=plan.prompt_count - 1,
            image_crc32=image_crc32,
            encode_ms=plan.encode_ms,
            decode_ms=decode_ms,
            total_ms=1e3 * (time.monotonic() - plan.started),
        )

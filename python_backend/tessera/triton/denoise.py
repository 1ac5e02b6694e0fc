"""`denoise`: owns the UNet; every `execute` is one tick of the running batch.

Triton's iterative sequences bring every unfinished request back for the next tick, together with
the new ones. What a request is, between ticks, is kept here under the correlation id that Triton
gave it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from tessera import trace
from tessera.adapters.unet import UNetAdapters
from tessera.contract import MAX_CONTROLS, Stats
from tessera.controls.fanout import FanOut
from tessera.denoise.canvas import Canvas, canvas_of
from tessera.denoise.running import Running, RunningControl, start
from tessera.denoise.sampler import Sampler
from tessera.denoise.unet import UNet, conditions_of
from tessera.edits.opening import open_sparse
from tessera.engines.bundle import Bundle
from tessera.errors import Cancelled, Unavailable
from tessera.manifest import CONTROLNET
from tessera.plan import Plan
from tessera.shared.board import Board, Phase
from tessera.shared.processes import model_processes
from tessera.shared.settings import ServerSettings
from tessera.triton import pb
from tessera.variants import VARIANTS

MAX_REGROUPS = 3
"""How often in a row a batch is sent back because requests of the last tick are not in it yet."""

BURST_S = 1.0
"""Longest time without going back to Triton."""
VANISHED_S = 60.0
"""A request that no tick has brought back for this long was dropped by Triton; its state is
collected."""


class TritonPythonModel:
    """PLAN, TEXT, POOLED, CLEAN, ACTIVE, CONTROL, QUEUED_TICK -> LATENTS, STATS, one step per
    call.
    """

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the bundle, the board and the UNet's engines."""
        torch.set_num_threads(1)
        settings = ServerSettings.from_environment()
        trace.write_to(settings.trace)
        bundle = Bundle.of(settings)
        self._manifest = bundle.manifest
        self._variant = VARIANTS[bundle.manifest.variant]
        self._scheduler_config = bundle.scheduler_config
        halves = {name: bundle.engine(name) for name in ("unet_encoder", "unet_decoder")}
        self._unet = UNet(*halves.values(), max_rows=bundle.manifest.limits.max_rows)
        self._slots = int(json.loads(args["model_config"])["max_batch_size"])
        self._adapters = UNetAdapters(bundle, halves, settings, slots=self._slots, log=pb.log)
        self._board = Board(settings.board)
        self._controls = FanOut(_ask, _lives)
        self._sparse, self._chooser = open_sparse(bundle, self._unet, self._controls, settings)
        self._gauges = _gauges(self._sparse.memory.tiers) if self._sparse else {}
        self._running: dict[int, Running] = {}
        self._seen: dict[int, float] = {}
        self._expected: set[int] = set()
        self._regroups = 0

    @torch.inference_mode()
    def execute(self, requests: list[pb.Request]) -> list[pb.Response | None]:
        """Run a burst of ticks, answer the requests that have ended, reschedule the others.

        A burst is one tick as long as anybody is on the way to join. Otherwise it goes on until a
        request ends, a job appears on the board, or `BURST_S` have passed: to go back to Triton
        after every step would cost 0.7 ms each time and change nothing.
        """
        present = {request.correlation_id(): request for request in requests}
        if self._must_regroup(set(present)):
            for request in requests:
                pb.reschedule(request)
            return [None] * len(requests)
        until = time.monotonic() + BURST_S
        errors = self._tick(present)
        while not self._must_return(present, errors, until):
            errors = self._tick(present)
        self._expected = set()
        self._tell()
        responses = [self._conclude(r, errors[i]) for i, r in present.items()]
        self._collect_vanished()
        return responses

    def _tick(self, present: dict[int, pb.Request]) -> dict[int, Exception | None]:
        """Admit newcomers, drop the cancelled, move the rest by one step; the errors of each."""
        with trace.span("tick", requests=len(present)):
            return self._step(present)

    def _step(self, present: dict[int, pb.Request]) -> dict[int, Exception | None]:
        number = self._board.begin_tick()
        errors = {i: self._prepare(i, request) for i, request in present.items()}
        stepping = [self._running[i] for i, error in errors.items() if error is None]
        try:
            self._adapters.tick(
                stepping,
                self._unet.predict,
                number,
                sparse=self._sparse,
                observer=self._chooser,
                controls=self._controls,
            )
        except Exception as error:
            for request in stepping:
                request.error = request.error or error
        for request in stepping:
            plan = request.plan
            phase = Phase.DECODING if request.finished else Phase.DENOISING
            self._board.progress(plan.slot, plan.ticket, phase, request.step)
        return errors

    def _must_return(
        self,
        present: dict[int, pb.Request],
        errors: dict[int, Exception | None],
        until: float,
    ) -> bool:
        """Whether a burst is over: somebody has ended or may join, or it has lasted long enough."""
        if any(errors.values()) or any(self._running[i].finished for i in present):
            return True
        may_join = len(present) < self._slots and self._board.waiting()
        return may_join or time.monotonic() > until

    def _must_regroup(self, present: set[int]) -> bool:
        """Whether to send a batch back at once, so that it comes again together with what is
        missing from it.

        Triton hands over whatever has been rescheduled when the model becomes free, which now and
        then is a part of the running batch only. Sending it back costs 0.2 ms; a queue delay would
        cost every tick its full length.
        """
        if self._expected <= present or self._regroups == MAX_REGROUPS:
            self._regroups = 0
            return False
        self._regroups += 1
        return True

    def _prepare(self, identity: int, request: pb.Request) -> Exception | None:
        """Make sure there is something to step for a request; the reason if there is not."""
        try:
            if identity not in self._running:
                self._admit(identity, request)
            plan = self._running[identity].plan
            if self._board.cancelled(plan.slot, plan.ticket):
                raise Cancelled(
                    f"job {plan.job_id} was cancelled after {self._running[identity].step} steps"
                )
        except Exception as error:
            return error
        return None

    def _admit(self, identity: int, request: pb.Request) -> None:
        inputs = pb.handles(request)
        plan = Plan.from_json(pb.text(inputs["PLAN"]))
        if not self._board.holds(plan.slot, plan.ticket):
            raise Unavailable(
                f"job {plan.job_id} is not on the board; send requests to the generate model"
            )
        self._adapters.read_ahead(plan.adapters)
        sampler = Sampler(
            plan.scheduler,
            self._scheduler_config,
            steps=plan.steps,
            seed=plan.seed,
            first=plan.first_step,
        )
        latents = self._manifest.latents
        conditions = conditions_of(
            pb.to_torch(inputs["TEXT"]).clone(),
            pb.to_torch(inputs["POOLED"]).clone(),
            width=plan.width,
            height=plan.height,
            variant=self._variant,
        )
        running = start(
            plan,
            conditions,
            sampler,
            shape=(latents.channels, plan.height // latents.pixels, plan.width // latents.pixels),
            canvas=_canvas(inputs) if plan.template else None,
            controls=_running_controls(plan, inputs),
        )
        if self._sparse and running.canvas and plan.mode != "dense":
            running.sparse = self._sparse.admit(plan, running.canvas, conditions, self._chooser)
        self._running[identity] = running
        running.stats.queued_tick = int(inputs["QUEUED_TICK"].as_numpy().item())

    def _conclude(self, request: pb.Request, error: Exception | None) -> pb.Response | None:
        """Answer a request that has ended; reschedule one that has not (`None`)."""
        identity = request.correlation_id()
        running = self._running.get(identity)
        error = error or (running.error if running else None)
        if running is None or error is not None:
            if running is not None:  # render does this too, if it lives
                phase = Phase.CANCELLED if isinstance(error, Cancelled) else Phase.FAILED
                self._board.close(running.plan.slot, running.plan.ticket, phase)
            self._forget(identity)
            return pb.fail(request, error or RuntimeError("a request without state"))
        if not running.finished:
            self._expected.add(identity)
            self._seen[identity] = time.monotonic()  # not before: a tick may take very long
            pb.reschedule(request)
            return None
        stats = _finished(running).to_json()
        self._forget(identity)
        return pb.respond(
            [pb.tensor("LATENTS", running.latents[0].numpy()), pb.tensor("STATS", stats)]
        )

    def _tell(self) -> None:
        """Publish how the tiers of recorded steps do."""
        if self._sparse is None:
            return
        tiers = self._sparse.memory.tiers
        self._board.tell_cache(**vars(tiers["memory"]))
        for (tier, name), gauge in self._gauges.items():
            gauge.set(getattr(tiers[tier], name))

    def _forget(self, identity: int) -> None:
        for table in (self._running, self._seen):
            table.pop(identity, None)

    def _collect_vanished(self) -> None:
        """Give up requests that Triton no longer brings."""
        limit = time.monotonic() - VANISHED_S
        for identity in [i for i, seen in self._seen.items() if seen < limit]:
            plan = self._running[identity].plan
            self._board.close(plan.slot, plan.ticket, Phase.FAILED)
            self._forget(identity)
            pb.log(f"job {plan.job_id} vanished; its state was collected")


def _canvas(inputs: dict[str, pb.TensorHandle]) -> Canvas:
    return canvas_of(pb.to_torch(inputs["CLEAN"]).clone(), pb.to_torch(inputs["ACTIVE"]).clone())


def _running_controls(plan: Plan, inputs: dict[str, pb.TensorHandle]) -> tuple[RunningControl, ...]:
    if not plan.controls:
        return ()
    images = pb.to_torch(inputs["CONTROL"]).clone()
    first = plan.ticket * MAX_CONTROLS  # no two jobs have the same ticket
    return tuple(
        RunningControl(use, first + i, image)
        for i, (use, image) in enumerate(zip(plan.controls, images, strict=True))
    )


def _ask(name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Call a ControlNet's model."""
    tensors = [pb.tensor_of(key, tensor) for key, tensor in inputs.items()]
    return pb.to_torch(pb.call(f"{CONTROLNET}{name}", tensors, ["RESIDUALS"])["RESIDUALS"])


def _lives(name: str) -> bool:
    """Whether a ControlNet's process is there."""
    return f"{CONTROLNET}{name}" in model_processes(os.getppid()).values()


def _finished(running: Running) -> Stats:
    """The stats of a request whose steps are done, with what only its end tells."""
    stats, plan = running.stats, running.plan
    stats.denoise_ms = 1e3 * (time.monotonic() - running.started)
    before = 1e3 * (time.time() - plan.started) - stats.denoise_ms
    stats.queue_ms = max(0.0, before - plan.encode_ms)
    stats.control_load_ms = plan.control_load_ms
    stats.refit_ms += plan.text_refit_ms
    stats.mode = _mode(running)
    if plan.adapters:
        stats.lora_path = _lora_path(stats)
    else:
        stats.adapted_at = None
    return stats


def _mode(running: Running) -> str:
    """How it was denoised: `mixed` if there were dense steps behind the first sparse one, since its
    recording was not yet there, or lost.
    """
    if not running.stats.sparse_ticks:
        return "dense"
    if running.sparse is None:
        return "mixed"
    kinds = list(running.sparse.kinds)
    return "sparse" if all(kinds[kinds.index(True) :]) else "mixed"


def _lora_path(stats: Stats) -> str:
    """How a request got the LoRAs of its UNet."""
    if not stats.side_ticks:
        return "refit"
    return "side" if stats.side_ticks == stats.ticks else "mixed"


def _gauges(tiers: Iterable[str]) -> dict[tuple[str, str], pb.Gauge]:
    """By tier (`memory` is the host's) and name."""
    what = {
        "hits": "reads of recorded steps that found them",
        "misses": "reads of recorded steps that had to ask the tier below",
        "evictions": "recorded steps that left for others",
        "bytes": "of recorded steps",
        "entries": "recorded steps",
    }
    prefixes = {tier: "" if tier == "memory" else f"{tier}_" for tier in tiers}
    return {
        (tier, name): pb.Gauge(
            f"tessera_template_{prefix}{name}", f"Template activations in {tier}: {text}"
        )
        for tier, prefix in prefixes.items()
        for name, text in what.items()
    }

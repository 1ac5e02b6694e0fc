"""`denoise`: owns the UNet; every `execute` is one tick of the running batch.

Triton's iterative sequences bring every unfinished request back for the next tick, together with
the new ones. What a request is, between ticks, is kept here under the correlation id that Triton
gave it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tessera import trace
from tessera.adapters.unet import UNetAdapters
from tessera.contract.limits import PRIORITIES
from tessera.controls.fanout import FanOut
from tessera.denoise.canvas import Canvas, canvas_of
from tessera.denoise.ending import final_stats
from tessera.denoise.opening import open_unet
from tessera.denoise.running import Running, controls_of, start
from tessera.denoise.sampler import Sampler
from tessera.denoise.slots import by_tokens, in_turn, slots_of
from tessera.denoise.unet import conditions_of, embed_guidance
from tessera.edits.opening import open_sparse
from tessera.engines.bundle import Bundle
from tessera.errors import Forbidden
from tessera.load.teller import LoadTeller
from tessera.manifest import CONTROLNET
from tessera.plan import Plan
from tessera.shared.board import Board
from tessera.shared.previews import PreviewWriter
from tessera.shared.processes import model_processes
from tessera.shared.rows import Phase
from tessera.shared.settings import ServerSettings
from tessera.triton import pb
from tessera.triton.controls import ask
from tessera.triton.ending import Endings
from tessera.triton.handing import copied, denoised, plan_of
from tessera.triton.metrics import Metrics
from tessera.triton.step_metrics import StepMetrics
from tessera.variants import VARIANTS

MAX_REGROUPS = 3
"""How often in a row a batch is sent back because requests of the last tick are not in it yet."""

BURST_S = 1.0
"""Longest time without going back to Triton."""
TURN_S = 0.1
"""So long those that have the slots keep them, whoever of their priority is on the way."""
VANISHED_S = 60.0
"""A request that no tick has brought back for this long was dropped by Triton; its state is
collected."""


class TritonPythonModel:
    """PLAN, TEXT, POOLED, CLEAN, ACTIVE, MASKED, CONTROL, QUEUED_TICK -> LATENTS, STATS, one
    step per call.
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
        opened = open_unet(bundle)
        self._unet = opened.unet
        most = int(json.loads(args["model_config"])["parameters"]["slots"]["string_value"])
        self._slots = slots_of(settings.slots, most, opened.devices.places)
        self._metrics = StepMetrics(Metrics())
        self._board = Board(settings.board)
        self._previews = PreviewWriter(
            settings.previews,
            places=most,
            floats=self._manifest.latents.channels * self._manifest.largest_latents,
        )
        self._endings = Endings(settings, self._board)
        self._board.tell_slots(self._slots, most)
        self._board.tell_awaited("")  # which a process that has been killed may have left
        self._controls = FanOut(ask, _lives, self._board.tell_awaited)
        self._sparse, self._chooser = open_sparse(
            bundle, opened, self._controls, settings, log=pb.log
        )
        self._adapters = UNetAdapters(
            bundle,
            opened,
            settings,
            sparse=self._sparse.graphs if self._sparse else {},
            log=pb.log,
            on_switch=self._metrics.switched,
        )
        self._load = LoadTeller(settings, self._slots, self._adapters, self._sparse, self._chooser)
        self._running: dict[int, Running] = {}
        self._seen: dict[int, float] = {}
        self._expected: set[int] = set()
        self._regroups = 0

    def execute(self, requests: list[pb.Request]) -> list[pb.Response | None]:
        """Run a burst of ticks, answer the requests that have ended, reschedule the others.

        Every request is looked at every time: one from outside may have the correlation id of
        another's.
        """
        with trace.span("execute"):
            return self._execute(requests)

    def _execute(self, requests: list[pb.Request]) -> list[pb.Response | None]:
        ours = [pb.is_call(request) for request in requests]
        known = [request for request, our in zip(requests, ours, strict=True) if our]
        answers = iter(self._burst(known) if known else ())
        return [
            next(answers) if our else pb.fail(request, Forbidden())
            for request, our in zip(requests, ours, strict=True)
        ]

    @torch.inference_mode()
    def _burst(self, requests: list[pb.Request]) -> list[pb.Response | None]:
        """A burst is one tick as long as anybody is on the way to join. Otherwise it goes on until
        a request ends, a job appears on the board, or `BURST_S` have passed: to go back to Triton
        after every step would cost 0.7 ms each time and change nothing.
        """
        present = {request.correlation_id(): request for request in requests}
        if self._must_regroup(set(present)):
            for request in requests:
                pb.reschedule(request)
            return [None] * len(requests)
        began = time.monotonic()
        errors = self._tick(present)
        while not self._must_return(present, errors, began):
            errors = self._tick(present)
        self._metrics.flush()
        self._expected = set()
        responses = [self._conclude(r, errors[i]) for i, r in present.items()]
        self._collect_vanished()
        self._tell()
        self._load.tell(self._started)
        return responses

    def _tick(self, present: dict[int, pb.Request]) -> dict[int, Exception | None]:
        """Admit newcomers, drop the cancelled, move the rest by one step; the errors of each."""
        number = self._board.begin_tick()
        with trace.span("tick", number=number, requests=len(present)):
            return self._step(present, number)

    def _step(self, present: dict[int, pb.Request], number: int) -> dict[int, Exception | None]:
        errors = {i: self._prepare(i, request) for i, request in present.items()}
        able = [self._running[i] for i, error in errors.items() if error is None]
        stepping = self._first(able)
        try:
            self._adapters.tick(
                stepping,
                self._unet.predict,
                number,
                sparse=self._sparse,
                observer=self._chooser,
                controls=self._controls,
                meter=self._metrics.call,
                crowded=len(stepping) < len(able),
            )
        except Exception as error:
            for request in stepping:
                request.error = request.error or error
        for request in stepping:
            plan = request.plan
            phase = Phase.DECODING if request.finished else Phase.DENOISING
            self._board.progress(plan.slot, plan.ticket, phase, request.steps_done)
            if self._board.watched(plan.slot, plan.ticket):
                self._show(request)
        for request in able:
            if request.paused:
                self._board.pause(request.plan.slot, request.plan.ticket)
        self._load.tell(self._started)
        return errors

    def _first(self, requests: Sequence[Running]) -> list[Running]:
        """Those that have the slots in this tick."""
        cost = self._chooser.cost if self._chooser else by_tokens
        if len(ready := requests) > self._slots:
            ready = self._adapters.ready(requests)
        first = in_turn(ready, self._slots, cost, time.monotonic())
        chosen = set(map(id, first))
        for request in requests:
            if id(request) in chosen:
                request.begin()
            else:
                request.pause()
        return first

    @property
    def _started(self) -> dict[int, Running]:
        """Those that had a slot already; the board says who waits."""
        return {i: request for i, request in self._running.items() if request.started}

    def _show(self, request: Running) -> None:
        """Publish a watched request's latents."""
        if (predicted := request.predicted) is not None:
            self._previews.write(request.plan.ticket, request.steps_done, predicted[0].numpy())

    def _must_return(
        self,
        present: dict[int, pb.Request],
        errors: dict[int, Exception | None],
        began: float,
    ) -> bool:
        """Whether a burst is over: somebody has ended or may join, or it has lasted long enough."""
        if any(errors.values()) or any(self._running[i].finished for i in present):
            return True
        here, lasted = [self._running[i].plan for i in present], time.monotonic() - began
        # If all slots are taken, one of the same priority can only change whose turn it is.
        free = len(present) < self._slots or lasted > TURN_S
        last = PRIORITIES + 1 if free else max(plan.priority for plan in here)
        may_join = self._board.waiting(before=last, here=[plan.ticket for plan in here])
        return may_join or lasted > BURST_S

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
            running = self._running[identity]
            self._board.check_wanted(running.plan, f" after {running.steps_done} steps")
        except Exception as error:
            return error
        return None

    def _admit(self, identity: int, request: pb.Request) -> None:
        inputs = pb.handles(request)
        plan = plan_of(inputs, called=True)
        self._board.check_wanted(plan)
        tensors = copied(plan, inputs)
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
            tensors["TEXT"],
            tensors["POOLED"],
            width=plan.width,
            height=plan.height,
            variant=self._variant,
            guidance=embed_guidance(plan.guidance, self._manifest.guidance_width),
        )
        canvas, weights = _of_template(plan, tensors, latents.channels)
        sparse = None
        if self._sparse and canvas and plan.mode != "dense":
            sparse = self._sparse.admit(plan, canvas, conditions, self._chooser)
        if canvas and self._manifest.inpaints:  # as diffusers; a recording is of a held template
            held = sparse is not None or plan.soft
            canvas = dataclasses.replace(canvas, held=held)
        running = start(
            plan,
            conditions,
            sampler,
            shape=(latents.channels, plan.height // latents.pixels, plan.width // latents.pixels),
            canvas=canvas,
            masked=tensors["MASKED"][None] if self._manifest.inpaints else None,
            weights=weights,
            controls=controls_of(plan, tensors["CONTROL"]) if plan.controls else (),
        )
        if sparse is not None:
            running.sparse = sparse
            sparse.tell(running.stats)
        self._running[identity] = running
        running.stats.queued_tick = int(inputs["QUEUED_TICK"].as_numpy().item())

    def _conclude(self, request: pb.Request, error: Exception | None) -> pb.Response | None:
        """Answer a request that has ended; reschedule one that has not (`None`)."""
        identity = request.correlation_id()
        running = self._running.get(identity)
        error = error or (running.error if running else None)
        if running is None or error is not None:
            ended = error or RuntimeError("a request without state")
            if running is not None:  # render does this too, if it lives
                self._endings.failed(running.plan, ended)
            self._forget(identity)
            return pb.fail(request, ended)
        if not running.finished:
            self._expected.add(identity)
            self._seen[identity] = time.monotonic()  # not before: a tick may take very long
            self._board.keep(running.plan.slot, running.plan.ticket)  # it may not have a slot
            pb.reschedule(request)
            return None
        self._forget(identity)
        return pb.respond(denoised(running.plan, running.latents[0].numpy(), final_stats(running)))

    def _tell(self) -> None:
        """Publish how the tiers of recorded steps do."""
        if self._sparse is None:
            return
        tiers = self._sparse.memory.tiers
        self._board.tell_cache(**vars(tiers["memory"]))
        self._metrics.tiers(tiers)

    def _forget(self, identity: int) -> None:
        for table in (self._running, self._seen):
            table.pop(identity, None)

    def _collect_vanished(self) -> None:
        """Give up requests that Triton no longer brings."""
        limit = time.monotonic() - VANISHED_S
        for identity in [i for i, seen in self._seen.items() if seen < limit]:
            plan = self._running[identity].plan
            self._endings.failed(plan, RuntimeError(f"Triton has dropped job {plan.job_id}"))
            self._forget(identity)


def _of_template(
    plan: Plan, tensors: Mapping[str, torch.Tensor], channels: int
) -> tuple[Canvas | None, torch.Tensor | None]:
    """What only an edit has: the canvas, and the weights of several prompts."""
    if not plan.template:
        return None, None
    clean = tensors["CLEAN"]
    canvas = canvas_of(clean[:channels], tensors["ACTIVE"], soft=plan.soft)
    return canvas, clean[channels:] if plan.prompt_count > 1 else None


def _lives(name: str) -> bool:
    """Whether a ControlNet's process is there."""
    return f"{CONTROLNET}{name}" in model_processes(os.getppid()).values()

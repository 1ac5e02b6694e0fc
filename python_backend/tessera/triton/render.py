"""`render`: one process per slot; holds one request while `denoise` works on it.

Imports neither torch nor engines. A sequence model must not be a member of an ensemble: clients'
sequence flags would reach it. Called from here, Triton sets the flags itself, and its queue limits,
timeouts and priorities apply to this model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from functools import cached_property
from typing import Any

import numpy as np

from tessera import trace
from tessera.controls.residency import Residency
from tessera.errors import Cancelled, TesseraError, Unavailable
from tessera.manifest import CONTROLNET, read_manifest
from tessera.plan import Plan
from tessera.shared.board import Board, Phase
from tessera.shared.processes import model_processes
from tessera.shared.settings import ServerSettings
from tessera.triton import pb

POLL_S = 0.02
"""How often a request that waits for a recording looks whether it has been cancelled."""

_ENDS_WITHIN_S = 30.0


class TritonPythonModel:
    """Middle member of the ensemble: PLAN, TEXT, POOLED, CLEAN, ACTIVE, CONTROL -> LATENTS,
    STATS.
    """

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the board."""
        self._settings = ServerSettings.from_environment()
        trace.write_to(self._settings.trace)
        self._board = Board(self._settings.board)

    @cached_property
    def _residency(self) -> Residency:
        return open_residency(self._settings)

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        with trace.span("execute"):
            return pb.answer_each(requests, self._render)

    def _render(self, request: pb.Request) -> list[pb.TensorHandle]:
        inputs = pb.handles(request)
        plan = Plan.from_json(pb.text(inputs["PLAN"]))
        try:
            self._board.check_serving()
            self._check(plan)
            if plan.to_record:
                self._record(plan)
            with self._controls(plan) as loaded:
                inputs["PLAN"] = pb.tensor("PLAN", loaded.to_json())
                queued = pb.tensor("QUEUED_TICK", np.array([self._board.tick], np.int64))
                outputs = pb.call("denoise", [*inputs.values(), queued], ["LATENTS", "STATS"])
        except Exception as error:
            cancelled = isinstance(error, TesseraError) and error.status == Cancelled.status
            self._board.close(
                plan.slot, plan.ticket, Phase.CANCELLED if cancelled else Phase.FAILED
            )
            raise
        return list(outputs.values())

    def _record(self, plan: Plan) -> None:
        """Wait until the template's activations have been recorded, as long as the job goes on: a
        recording that has begun is finished without it, since others may wait for it.
        """
        inputs = [
            pb.tensor("ACTION", b"register"),
            pb.tensor("TEMPLATE", plan.template.encode()),
            pb.tensor("STEPS", np.array([plan.steps], np.int32)),
            pb.tensor("SCHEDULER", plan.scheduler.encode()),
        ]
        done: Future[None] = Future()
        asking = (done, inputs, plan.job_id)
        threading.Thread(target=_ask_for_recording, args=asking, daemon=True).start()
        while not wait([done], POLL_S).done:
            self._check(plan)
        done.result()
        self._check(plan)

    @contextlib.contextmanager
    def _controls(self, plan: Plan) -> Iterator[Plan]:
        """Keep the plan's ControlNets loaded meanwhile; the plan, with the time that it took."""
        steps = plan.steps - plan.first_step
        names = {use.name for use in plan.controls if use.matters(steps)}
        if not names:
            yield plan
            return
        waited = self._residency.take(names, lambda: self._check(plan))
        try:
            yield dataclasses.replace(plan, control_load_ms=waited)
        finally:
            self._residency.give_back(names)

    def _check(self, plan: Plan) -> None:
        """See whether the job still goes on."""
        if self._board.cancelled(plan.slot, plan.ticket):
            raise Cancelled(f"job {plan.job_id} was cancelled")


def _ask_for_recording(done: Future[None], inputs: Sequence[pb.TensorHandle], job_id: str) -> None:
    try:
        pb.call("templates", inputs, ["RESULT"], {"job_id": job_id})
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(None)


class ControlModels:
    """See `tessera.controls.residency.Models`.

    A server that is not in explicit mode has loaded every model and keeps it: unloading one then
    has no effect but a line in the log.
    """

    def load(self, name: str) -> None:
        """Load it."""
        pb.load_model(f"{CONTROLNET}{name}")

    def unload(self, name: str) -> None:
        """Unload it and wait for the end of its process, which holds the memory."""
        model = f"{CONTROLNET}{name}"
        with contextlib.suppress(Unavailable):  # the log says so
            pb.unload_model(model)
            until = time.monotonic() + _ENDS_WITHIN_S
            while model in model_processes(os.getppid()).values() and time.monotonic() < until:
                time.sleep(0.02)

    def is_ready(self, name: str) -> bool:
        """Whether it is loaded."""
        return pb.is_ready(f"{CONTROLNET}{name}")


def open_residency(settings: ServerSettings) -> Residency:
    """Of the bundle that is served."""
    manifest = read_manifest(settings.bundle)
    return Residency(
        settings.control_table,
        {name: manifest.controlnet_bytes(name) for name in manifest.controlnets},
        budget=settings.controls.memory,
        pinned=settings.controls.pinned,
        models=ControlModels(),
    )

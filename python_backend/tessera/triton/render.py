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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import cached_property
from typing import Any

import numpy as np

from tessera import trace
from tessera.controls.residency import Residency
from tessera.errors import Unavailable
from tessera.manifest import CONTROLNET, read_manifest
from tessera.plan import Plan
from tessera.requests.parameters import ADAPTERS, TEXTS, adapters_text
from tessera.requests.tensors import check_finite, check_whole
from tessera.shared.board import Board
from tessera.shared.processes import model_processes
from tessera.shared.settings import ServerSettings
from tessera.triton import pb
from tessera.triton.ending import Endings
from tessera.triton.handing import TENSORS, plan_of, tensor_of_plan
from tessera.triton.metrics import Metrics

POLL_S = 0.02
"""How often a request that waits for a recording looks whether it has been cancelled."""

_ENDS_WITHIN_S = 30.0


class TritonPythonModel:
    """Middle member of the ensemble: PLAN, TEXT, POOLED, CLEAN, ACTIVE, MASKED, CONTROL ->
    LATENTS, STATS.
    """

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the board."""
        settings = ServerSettings.from_environment()
        trace.write_to(settings.trace)
        self._renderer = Renderer(settings, Board(settings.board), queued=True)

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        with trace.span("execute"):
            return pb.answer_each(
                requests, lambda request: self._renderer.render(pb.handles(request))
            )


class Renderer:
    """Has `denoise` work at requests, one at a time.

    Args:
        settings: the server's.
        board: its jobs.
        queued: whether requests come from the queue of `render`.
    """

    def __init__(self, settings: ServerSettings, board: Board, *, queued: bool) -> None:
        self._settings = settings
        self._board = board
        self._endings = Endings(settings, board)
        self._queued = queued

    @cached_property
    def _residency(self) -> Residency:
        return open_residency(self._settings)

    def render(self, inputs: Mapping[str, pb.TensorHandle]) -> list[pb.TensorHandle]:
        """LATENTS and STATS for PLAN and `TENSORS`."""
        plan = plan_of(inputs, called=not self._queued)
        try:
            self._board.check_serving()
            self._board.take(plan, queued=self._queued)
            arrays = {name: inputs[name].as_numpy() for name in TENSORS if name in inputs}
            check_whole(arrays, plan.shapes, plan.sums, TENSORS)
            check_finite(arrays, TENSORS)
            if plan.to_record:
                self._record(plan)
            with self._controls(plan) as loaded:
                queued = pb.tensor("QUEUED_TICK", np.array([self._board.tick], np.int64))
                parts = [tensor_of_plan(loaded), *(inputs[name] for name in TENSORS), queued]
                self._board.ask_denoise(plan.slot, plan.ticket)
                outputs = pb.call("denoise", parts, ["LATENTS", "STATS"])
        except Exception as error:
            self._endings.failed(plan, error)
            raise
        self._board.hand_on(plan.slot, plan.ticket)
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
        choices = {
            "job_id": plan.job_id,
            TEXTS: ",".join(plan.texts_to_record),
            ADAPTERS: adapters_text(plan.adapters),
        }
        asking = (done, inputs, choices)
        threading.Thread(target=_ask_for_recording, args=asking, daemon=True).start()
        while not wait([done], POLL_S).done:
            self._wait(plan)
        done.result()
        self._board.check_wanted(plan)

    def _wait(self, plan: Plan) -> None:
        """Look whether a job that waits here is to go on, and say that it is still here."""
        self._board.check_wanted(plan)
        self._board.keep(plan.slot, plan.ticket)

    @contextlib.contextmanager
    def _controls(self, plan: Plan) -> Iterator[Plan]:
        """Keep the plan's ControlNets loaded meanwhile; the plan, with the time that it took."""
        evaluations = len(plan.evaluations)
        names = {use.name for use in plan.controls if use.matters(evaluations)}
        if not names:
            yield plan
            return
        waited = self._residency.take(names, lambda: self._wait(plan))
        try:
            yield dataclasses.replace(plan, control_load_ms=waited)
        finally:
            self._residency.give_back(names)


def _ask_for_recording(
    done: Future[None], inputs: Sequence[pb.TensorHandle], choices: Mapping[str, str]
) -> None:
    try:
        pb.call("templates", inputs, ["RESULT"], choices)
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(None)


class ControlModels:
    """See `tessera.controls.residency.Models`.

    A server that is not in explicit mode has loaded every model and keeps it: unloading one then
    has no effect but a line in the log.
    """

    def __init__(self) -> None:
        self._metrics = Metrics()

    def load(self, name: str) -> None:
        """Load it."""
        pb.load_model(f"{CONTROLNET}{name}")
        self._metrics.count("control_loads_total")

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

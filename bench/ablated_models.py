"""`denoise` without one of its mechanisms: what `bench.ablated_server` serves.

Imported by Triton's process of `denoise` only.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any

from tessera.adapters.unet import UNetAdapters
from tessera.controls.fanout import FanOut, Join
from tessera.denoise.running import Running
from tessera.denoise.slots import by_arrival
from tessera.edits.steps import SparseSteps
from tessera.triton import denoise, pb

Model = type[denoise.TritonPythonModel]


class StaticBatches(denoise.TritonPythonModel):
    """Batches as Triton's dynamic batcher makes them: up to as many requests as there are slots, of
    those that wait when the batch before is done, by arrival. Nobody joins one, and its requests
    are answered together. It does not wait for more requests.
    """

    def initialize(self, args: dict[str, Any]) -> None:
        """See `denoise`."""
        super().initialize(args)
        self._batch: list[Running] = []

    @property
    def _unfinished(self) -> list[Running]:
        """Requests of the batch that have steps left."""
        here = {id(request) for request in self._running.values()}
        return [r for r in self._batch if id(r) in here and not r.finished]

    def _first(self, requests: Sequence[Running]) -> list[Running]:
        given = [request for request in requests if not request.finished]
        if not self._unfinished:
            self._batch = by_arrival(given)[: self._slots]
            for request in self._batch:
                request.begin()
        members = {id(request) for request in self._batch}
        return [request for request in given if id(request) in members]

    def _must_return(
        self, present: dict[int, pb.Request], errors: dict[int, Exception | None], began: float
    ) -> bool:
        here = {id(self._running[i]) for i in present if i in self._running}
        steps_on = any(id(request) in here for request in self._unfinished)
        return any(errors.values()) or not steps_on or time.monotonic() > began + denoise.BURST_S

    def _conclude(self, request: pb.Request, error: Exception | None) -> pb.Response | None:
        identity = request.correlation_id()
        running = self._running.get(identity)
        waits = running is not None and running.finished and not running.error
        if error is None and waits and self._unfinished:
            self._expected.add(identity)
            self._seen[identity] = time.monotonic()
            pb.reschedule(request)
            return None
        return super()._conclude(request, error)


class InLine(FanOut):
    """ControlNets run before the encoder half, not beside it."""

    def start(self, group: Sequence[Running]) -> Join | None:
        """See `FanOut`; all answers are there."""
        join = super().start(group)
        if join is not None:
            concurrent.futures.wait(join._answers.values())
        return join


class StepsOnTime(SparseSteps):
    """Recorded steps are read and put together when they are needed."""

    def _read_ahead(self, *_: Any) -> None:
        return

    def _cached(self, call: Any, group: Any, *, ahead: int) -> Any:
        return [] if ahead else super()._cached(call, group, ahead=0)


def static_batches() -> Model:
    """Static batches instead of continuous ones."""
    return StaticBatches


def no_bursts() -> Model:
    """Back to Triton after every tick."""
    denoise.BURST_S = 0.0
    return denoise.TritonPythonModel


def in_order_of_arrival() -> Model:
    """Whoever has come first has a slot to its end."""

    def first(requests: Sequence[Running], slots: int, *_: Any) -> list[Running]:
        return by_arrival(requests)[:slots]

    vars(denoise)["in_turn"] = first
    return denoise.TritonPythonModel


def controls_in_line() -> Model:
    """ControlNets before the encoder half."""
    denoise.FanOut = InLine  # type: ignore[attr-defined]
    return denoise.TritonPythonModel


def loras_on_time() -> Model:
    """LoRA files are read when their turn comes."""

    def ignore(*_: Any, **__: Any) -> None:
        return

    UNetAdapters.read_ahead = ignore  # type: ignore[method-assign]
    UNetAdapters._read_ahead_of_queue = ignore  # type: ignore[method-assign]
    return denoise.TritonPythonModel


def nothing_ahead() -> Model:
    """Neither LoRA files nor recorded steps are read ahead."""
    from tessera.edits import opening

    opening.SparseSteps = StepsOnTime  # type: ignore[attr-defined]
    return loras_on_time()


ABLATIONS: dict[str, Callable[[], Model]] = {
    "static": static_batches,
    "no-bursts": no_bursts,
    "by-arrival": in_order_of_arrival,
    "controls-in-line": controls_in_line,
    "loras-on-time": loras_on_time,
    "nothing-ahead": nothing_ahead,
}
"""By the name that `bench.ablated_server` is given."""

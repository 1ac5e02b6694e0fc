"""Fan-out: the ControlNets of a network call run while the UNet's encoder half does; what they
find is added before the decoder half.

A ControlNet is asked with one call for all requests of a group that it guides. What stays the same
from step to step (the text, the control picture) it is told once per request, under a key. Knows
requests and tensors; who makes the calls is a callable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from tessera import trace
from tessera.contract import MAX_CONTROLS
from tessera.controls.network import CONDITIONS
from tessera.denoise.running import Running, RunningControl
from tessera.denoise.tick import Regroup
from tessera.errors import InternalError, TesseraError, Unavailable
from tessera.types import Tensors

Ask = Callable[[str, Tensors], torch.Tensor]
"""(name of a ControlNet, inputs of its model) -> RESIDUALS; safe to call from several threads.

Raises `TesseraError`; of status `FORGOTTEN` if a key is not known."""

FORGOTTEN = "NOT_FOUND"
"""Status of a ControlNet's answer when it does not know a key: it is then told anew."""

WORKERS = 4 * MAX_CONTROLS
LOOK_S = 0.25
"""A call that takes longer is looked after: one to a process that has died would not end before its
model is loaded again, which takes seconds that everybody in the tick would wait."""


@dataclass(frozen=True)
class _Place:
    """Rows of a group's batch that one use of a ControlNet controls, and where its residuals are.

    Attributes:
        request, control: whose.
        first: its first row in the group's batch.
        found: its first row in the ControlNet's answer.
    """

    request: Running
    control: RunningControl
    first: int
    found: int


class FanOut:
    """Asks ControlNets for running requests.

    Args:
        ask: calls a ControlNet's model.
        lives: whether that ControlNet's process is there.
    """

    def __init__(self, ask: Ask, lives: Callable[[str], bool] = lambda name: True) -> None:
        self._ask = ask
        self._lives = lives
        self._took: dict[str, float] = {}  # seconds of a ControlNet's last answer
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="controls")

    def start(self, group: Sequence[Running]) -> Join | None:
        """Ask every ControlNet that guides a request of the group in its next step; `None` if there
        is none.
        """
        places: dict[str, list[_Place]] = {}
        rows = 0
        for request in group:
            for control in request.controls_now:
                same = places.setdefault(control.use.name, [])
                found = sum(p.request.branches for p in same)
                same.append(_Place(request, control, rows, found))
            rows += request.branches
        if not places:
            return None
        # The slowest first: calls set out one after the other.
        order = sorted(places, key=lambda name: self._took.get(name, 0.0), reverse=True)
        asked = {
            name: self._threads.submit(self._answer, name, places[name], _step_inputs(places[name]))
            for name in order
        }
        return Join(places, asked, self._lives)

    def _answer(self, name: str, places: list[_Place], inputs: Tensors) -> torch.Tensor:
        """A ControlNet's residuals for all its places, in one flat tensor."""
        began = time.perf_counter()
        with trace.span(f"ControlNet {name}", requests=len(places)):
            answer = self._told_and_asked(name, places, inputs)
        self._took[name] = time.perf_counter() - began
        return answer

    def _told_and_asked(self, name: str, places: list[_Place], inputs: Tensors) -> torch.Tensor:
        for place in places:
            if not place.control.told:
                self._tell(place)
        try:
            return self._ask(name, inputs)
        except TesseraError as error:
            if error.status != FORGOTTEN:
                raise
        for place in places:
            self._tell(place)
        return self._ask(name, inputs)

    def _tell(self, place: _Place) -> None:
        """Make a request's text and control picture known to a ControlNet."""
        control, conditions = place.control, place.request.conditions
        fixed = {
            ours: conditions[theirs] for ours, theirs in CONDITIONS.items() if theirs in conditions
        }
        told = {"KEYS": torch.tensor([control.key]), "IMAGE": control.image, **fixed}
        self._ask(control.use.name, told)
        control.told = True


def _step_inputs(places: list[_Place]) -> dict[str, torch.Tensor]:
    requests = [p.request for p in places]
    samples = [r.sampler.network_input(r.latents, r.step) for r in requests]
    return {
        "KEYS": torch.tensor([p.control.key for p in places]),
        "SAMPLE": torch.cat(samples),
        "TIMESTEP": torch.stack([r.timesteps[r.step][0] for r in requests]),
    }


class Join:
    """The answers to one group's calls; `add` waits for them."""

    def __init__(
        self,
        places: Mapping[str, list[_Place]],
        asked: Mapping[str, Future[torch.Tensor]],
        lives: Callable[[str], bool],
    ) -> None:
        self._places = places
        self._asked = asked
        self._lives = lives
        self._answers: dict[str, list[torch.Tensor]] | None = None

    @torch.inference_mode()
    def add(self, encoded: dict[str, torch.Tensor], first: int = 0) -> None:
        """Add scaled residuals to the encoder half's `skip_i` and `mid`, in place.

        Args:
            encoded: rows from `first` on of the group's batch.
            first: of the rows.

        Raises:
            Regroup: a ControlNet failed, or what it gave is of another size than what it is to be
                added to; the requests that it guides have its error.
        """
        names = [*sorted((n for n in encoded if n.startswith("skip_")), key=_number), "mid"]
        shapes = [encoded[name].shape[1:] for name in names]
        rows = encoded["mid"].shape[0]
        for place, residuals in self._found(shapes):
            scale = place.control.use.scale
            begin, end = place.first - first, place.first - first + place.request.branches
            inside = slice(max(begin, 0), min(end, rows))
            if inside.start >= inside.stop:
                continue
            for name, residual in zip(names, residuals, strict=True):
                own = encoded[name][inside]
                part = residual[inside.start - begin : inside.stop - begin]
                own.add_(part.to(own.device, own.dtype), alpha=scale)

    def maps(self, shapes: Sequence[torch.Size], rows: int) -> list[torch.Tensor]:
        """The sums of scaled residuals, (rows, c, h, w) each, for a network that is no two halves.

        Args:
            shapes: (c, h, w) of each skip in order, then of the mid block's result.
            rows: of the group's batch.

        Raises:
            Regroup: as `add`.
        """
        sums = {f"skip_{i}": torch.zeros(rows, *shape) for i, shape in enumerate(shapes[:-1])}
        sums["mid"] = torch.zeros(rows, *shapes[-1])
        self.add(sums)
        return list(sums.values())

    def _found(self, shapes: Sequence[torch.Size]) -> Iterator[tuple[_Place, list[torch.Tensor]]]:
        for name, maps in self._wait(shapes).items():
            for place in self._places[name]:
                own = slice(place.found, place.found + place.request.branches)
                yield place, [m[own] for m in maps]

    def _wait(self, shapes: Sequence[torch.Size]) -> dict[str, list[torch.Tensor]]:
        """Every answer; a ControlNet that failed fails the requests that it guides."""
        if self._answers is not None:
            return self._answers
        began = time.perf_counter()
        answers: dict[str, list[torch.Tensor]] = {}
        lost = False
        for name, future in self._asked.items():
            places = self._places[name]
            rows = sum(p.request.branches for p in places)
            try:
                answers[name] = _unpack(name, self._result(name, future), rows, shapes)
            except Exception as error:
                lost = True
                for place in places:
                    place.request.error = error
        if lost:
            raise Regroup
        waited = 1e3 * (time.perf_counter() - began)
        for request in {id(p.request): p.request for p in self._all()}.values():
            request.stats.control_wait_ms += waited
            request.stats.control_ticks += 1
        self._answers = answers
        return answers

    def _result(self, name: str, asked: Future[torch.Tensor]) -> torch.Tensor:
        """The answer, unless the process that it would come from has ended."""
        while True:
            try:
                return asked.result(LOOK_S)
            except TimeoutError:
                if asked.done() or self._lives(name):
                    continue
                raise Unavailable(
                    f"the controlnet_{name} model is being restarted; try again in a few seconds"
                ) from None

    def _all(self) -> Iterator[_Place]:
        for places in self._places.values():
            yield from places


def _unpack(
    name: str, packed: torch.Tensor, rows: int, shapes: Sequence[torch.Size]
) -> list[torch.Tensor]:
    """Views (rows, c, h, w) of a flat tensor in which the residuals lie one after the other."""
    sizes = [rows * shape.numel() for shape in shapes]
    if sum(sizes) != packed.numel():
        raise InternalError(
            f"ControlNet {name} gave {packed.numel()} numbers; {sum(sizes)} were expected"
        )
    parts = packed.split(sizes)
    return [part.view(rows, *shape) for part, shape in zip(parts, shapes, strict=True)]


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])

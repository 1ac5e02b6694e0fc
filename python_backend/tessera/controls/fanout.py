"""Fan-out: calls the ControlNets of a group while the UNet's encoder half runs, and adds their
residuals before the decoder half.

One call asks a ControlNet for all requests of a group that use it. The inputs that are the same in
every step (text, control image) are sent once per request, under a key. Knows requests and tensors,
nothing of Triton: calls are made by a callable.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
"""(name of a ControlNet, inputs of its model) -> RESIDUALS. Safe to call from several threads.

Raises `TesseraError`, with status `FORGOTTEN` if a key is unknown."""

FORGOTTEN = "NOT_FOUND"
"""Status of a ControlNet's answer if it does not know a key. The key is then sent again."""

WORKERS = 4 * MAX_CONTROLS
LOOK_S = 0.25
"""Interval at which a waiting call checks that the ControlNet's process lives. A call to a dead
process ends only when its model is loaded again. That takes seconds, and every request in the tick
would wait."""


@dataclass(frozen=True)
class _Place:
    """Where one running control's rows are in the group's batch and in the ControlNet's answer.

    Attributes:
        request, control: the request and its running control.
        rows: how many: the request's branches, or only the last ones, the prompts'.
        first: first row in the group's batch.
        first_in_answer: first row in the ControlNet's answer.
    """

    request: Running
    control: RunningControl
    rows: int
    first: int
    first_in_answer: int


class FanOut:
    """Calls ControlNets for running requests.

    Args:
        ask: calls a ControlNet's model.
        lives: whether a ControlNet's process is alive, by the ControlNet's name.
        awaits: told the name of a ControlNet that is waited for, and "" when that is over.
    """

    def __init__(
        self,
        ask: Ask,
        lives: Callable[[str], bool] = lambda name: True,
        awaits: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._ask = ask
        self._lives = lives
        self._awaits = awaits
        self._answer_s: dict[str, float] = {}  # duration of each ControlNet's last call
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="controls")

    def start(self, group: Sequence[Running]) -> Join | None:
        """Call every ControlNet that applies to a request of the group in its next step.

        Returns:
            A join that waits for the answers; `None` if no ControlNet applies.
        """
        places: dict[str, list[_Place]] = {}
        rows = 0
        for request in group:
            for control in request.controls_now:
                same = places.setdefault(control.use.name, [])
                prompts = request.plan.prompt_count
                count = prompts if control.use.of_prompt_only else request.branches
                first = rows + request.branches - count
                same.append(_Place(request, control, count, first, sum(p.rows for p in same)))
            rows += request.branches
        if not places:
            return None
        # The slowest first, since calls are submitted one after the other.
        order = sorted(places, key=lambda name: self._answer_s.get(name, 0.0), reverse=True)
        answers = {
            name: self._threads.submit(self._answer, name, places[name], _step_inputs(places[name]))
            for name in order
        }
        return Join(places, answers, self._lives, self._awaits)

    def _answer(self, name: str, places: list[_Place], inputs: Tensors) -> torch.Tensor:
        """A ControlNet's residuals for all its places, as one flat tensor."""
        began = time.perf_counter()
        with trace.span(f"ControlNet {name}", requests=len(places)):
            answer = self._tell_and_ask(name, places, inputs)
        self._answer_s[name] = time.perf_counter() - began
        return answer

    def _tell_and_ask(self, name: str, places: list[_Place], inputs: Tensors) -> torch.Tensor:
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
        """Send a request's text and control image to a ControlNet."""
        control, conditions = place.control, place.request.conditions
        fixed = {
            field: conditions[name][-place.rows :]
            for field, name in CONDITIONS.items()
            if name in conditions
        }
        inputs = {"KEYS": torch.tensor([control.key]), "IMAGE": control.image, **fixed}
        if control.use.mode is not None:
            inputs["MODE"] = torch.tensor([control.use.mode])
        self._ask(control.use.name, inputs)
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
    """The answers to one group's calls. `add` waits for them; each device may call it for its rows,
    all at once.
    """

    def __init__(
        self,
        places: Mapping[str, list[_Place]],
        answers: Mapping[str, Future[torch.Tensor]],
        lives: Callable[[str], bool],
        awaits: Callable[[str], None],
    ) -> None:
        self._places = places
        self._answers = answers
        self._lives = lives
        self._awaits = awaits
        self._residuals: dict[str, list[torch.Tensor]] | None = None
        self._lock = threading.Lock()

    @torch.inference_mode()
    def add(self, encoded: dict[str, torch.Tensor], first: int = 0) -> None:
        """Add scaled residuals to the encoder half's `skip_i` and `mid`, in place.

        Args:
            encoded: the encoder half's outputs for rows of the group's batch from `first` on.
            first: index of the first row.

        Raises:
            Regroup: a ControlNet failed, or its residuals do not fit the encoder half's outputs.
                The requests that use it get its error.
        """
        names = [*sorted((n for n in encoded if n.startswith("skip_")), key=_number), "mid"]
        shapes = [encoded[name].shape[1:] for name in names]
        rows = encoded["mid"].shape[0]
        for place, residuals in self._by_place(shapes):
            begin, end = place.first - first, place.first - first + place.rows
            inside = slice(max(begin, 0), min(end, rows))
            if inside.start >= inside.stop:
                continue
            scales = place.control.use.scales(len(names))
            for name, residual, scale in zip(names, residuals, scales, strict=True):
                target = encoded[name][inside]
                part = residual[inside.start - begin : inside.stop - begin]
                target.add_(part.to(target.device, target.dtype), alpha=scale)

    def maps(self, shapes: Sequence[torch.Size], rows: int) -> list[torch.Tensor]:
        """The sums of scaled residuals, (rows, c, h, w) each, for a UNet that is not cut.

        Args:
            shapes: (c, h, w) of each skip in order, then of the mid block's output.
            rows: number of rows of the group's batch.

        Raises:
            Regroup: see `add`.
        """
        sums = {f"skip_{i}": torch.zeros(rows, *shape) for i, shape in enumerate(shapes[:-1])}
        sums["mid"] = torch.zeros(rows, *shapes[-1])
        self.add(sums)
        return list(sums.values())

    def _by_place(
        self, shapes: Sequence[torch.Size]
    ) -> Iterator[tuple[_Place, list[torch.Tensor]]]:
        with self._lock:
            waited = self._wait(shapes)
        for name, maps in waited.items():
            for place in self._places[name]:
                rows = slice(place.first_in_answer, place.first_in_answer + place.rows)
                yield place, [m[rows] for m in maps]

    def _wait(self, shapes: Sequence[torch.Size]) -> dict[str, list[torch.Tensor]]:
        """All residuals by ControlNet. If a ControlNet fails, the requests that use it fail."""
        if self._residuals is not None:
            return self._residuals
        began = time.perf_counter()
        residuals: dict[str, list[torch.Tensor]] = {}
        failed = False
        for name, answer in self._answers.items():
            places = self._places[name]
            rows = sum(p.rows for p in places)
            try:
                residuals[name] = unpack(name, self._result(name, answer), rows, shapes)
            except Exception as error:
                failed = True
                for place in places:
                    place.request.error = error
        if failed:
            raise Regroup
        waited_ms = 1e3 * (time.perf_counter() - began)
        for request in {id(p.request): p.request for p in self._all_places()}.values():
            request.stats.control_wait_ms += waited_ms
            request.stats.control_ticks += 1
        self._residuals = residuals
        return residuals

    def _result(self, name: str, answer: Future[torch.Tensor]) -> torch.Tensor:
        """Wait for an answer as long as the ControlNet's process lives."""
        try:
            while not wait([answer], LOOK_S).done:
                self._awaits(name)
                if not (answer.done() or self._lives(name)):
                    raise Unavailable(
                        f"the controlnet_{name} model is being restarted; try again in a few "
                        "seconds"
                    )
        finally:
            self._awaits("")
        return answer.result()

    def _all_places(self) -> Iterator[_Place]:
        for places in self._places.values():
            yield from places


def unpack(
    name: str, packed: torch.Tensor, rows: int, shapes: Sequence[torch.Size]
) -> list[torch.Tensor]:
    """Views (rows, c, h, w) of a ControlNet's answer, a flat tensor of consecutive residuals.

    Raises:
        InternalError: it has another length.
    """
    sizes = [rows * shape.numel() for shape in shapes]
    if sum(sizes) != packed.numel():
        raise InternalError(
            f"ControlNet {name} returned {packed.numel()} numbers; {sum(sizes)} were expected"
        )
    parts = packed.split(sizes)
    return [part.view(rows, *shape) for part, shape in zip(parts, shapes, strict=True)]


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])

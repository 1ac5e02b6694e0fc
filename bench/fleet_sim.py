"""A fleet of workers, event by event: which policy finishes requests first?

A worker runs a batch step by step. A step lasts `overhead` and the larger one of computing and
loading, summed over the batch, as in InstGenIE (arXiv:2505.20600). A request joins when what it
needs is there: its template's recording in host memory, its LoRAs' files, its ControlNets. One
thing is read at a time. The score and the book are the product's.

`bench.fleet_report` runs the experiments and draws the figures. Milliseconds everywhere.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from bench.fleet_world import SIDE, TOKENS, Request, World, requests_of
from tessera_gateway.fleet.book import Book, Choice, Score
from tessera_gateway.fleet.load import Defaults, Load, Recorded, Running, Waiting


class Kept:
    """A cache of so many things, the least recently used leaves first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._things: OrderedDict[Hashable, None] = OrderedDict()

    def __contains__(self, thing: Hashable) -> bool:
        return thing in self._things

    def use(self, thing: Hashable) -> bool:
        """Whether it was there; now it is."""
        was = thing in self._things
        self._things[thing] = None
        self._things.move_to_end(thing)
        if len(self._things) > self._size:
            self._things.popitem(last=False)
        return was

    def list(self) -> tuple[str, ...]:
        """What is there."""
        return tuple(str(thing) for thing in self._things)


class Told(Load, frozen=True, dict=True):
    """A load whose recordings are asked for one by one: a list of 970 would take long."""

    def recording(self, template: str, scheduler: str, steps: int) -> Recorded | None:
        """Every recording is in the store."""
        there = self.__dict__["worker_state"].recorded(template)
        return Recorded(template, scheduler, steps, steps, steps if there else 0)


@dataclass(eq=False)
class Worker:
    """One worker; `until` is the end of its step."""

    number: int
    world: World
    running: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    current: tuple[tuple[str, float], ...] = ()
    reader: float = 0.0
    busy: float = 0.0
    ticking: bool = False
    until: float = -1.0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.templates, self.files = Kept(self.world.host), Kept(self.world.files)
        self.nets = Kept(self.world.nets)
        self._coming: dict[str, float] = {}

    def recorded(self, template: str) -> bool:
        """Whether a recording is in memory, not only on its way there."""
        return template in self.templates and self._coming.get(template, 0.0) <= self.now

    def accept(self, request: Request, now: float) -> None:
        """Take a request, and begin to read what it lacks."""
        peek, world = request.peek, self.world
        lacks = 0.0
        if peek.template:
            lacks += 0.0 if self.templates.use(peek.template) else world.read
        lacks += world.file * sum(not self.files.use(name) for name, _ in peek.loras)
        lacks += world.control * sum(not self.nets.use(name) for name in peek.controls)
        request.missed = lacks
        request.ready = max(now, self._coming.get(peek.template, 0.0))
        if lacks:
            self.reader = request.ready = max(self.reader, now) + lacks
            if peek.template:
                self._coming[peek.template] = self.reader
        self.waiting.append(request)

    def tick(self, now: float) -> float:
        """Begin a step; how long it lasts, 0 if there is nothing to do."""
        for request in [r for r in self.waiting if r.ready <= now]:
            if len(self.running) < self.world.slots:
                self.waiting.remove(request)
                self.running.append(request)
        self.ticking = bool(self.running)
        if not self.running:
            return 0.0
        compute, copy = (sum(getattr(r, n) for r in self.running) for n in ("compute", "copy"))
        sets = {r.peek.loras for r in self.running if r.peek.loras}
        refits = self.world.merge * len(sets - {self.current}) / self.world.steps
        self.current = min(sets, default=self.current)
        length = self.world.overhead + max(compute, copy) + refits
        self.busy += length
        return length

    def load(self, now: float) -> Load:
        """What it tells."""
        self.now = now
        told = Told(
            worker=str(self.number),
            slots=self.world.slots,
            running=tuple(_running(r) for r in self.running),
            waiting=tuple(Waiting(r.peek.job, r.left) for r in self.waiting),
            current=self.current,
            parsed=self.files.list(),
            controls=self.nets.list(),
            lines=self.world.lines,
            read_ms=self.world.read / self.world.steps,
            refit_ms=self.world.merge,
            defaults=Defaults(self.world.steps, 8 * SIDE, 8 * SIDE, 1.0, "", 8),
        )
        told.__dict__["worker_state"] = self
        return told


def _running(request: Request) -> Running:
    mask = request.peek.mask
    return Running(
        request.peek.job,
        request.left,
        0 if mask is None else request.left,
        1,
        SIDE,
        SIDE,
        round((mask or 0.0) * TOKENS),
    )


@dataclass(frozen=True)
class Outcome:
    """What became of the requests, without the first sixth. Times are in seconds.

    Attributes:
        found: share that found everything they needed.
        busiest: share of the time that the busiest worker computed.
    """

    p50: float
    p95: float
    found: float
    busiest: float


class Simulation:
    """One run.

    Args:
        world: what is simulated.
        policy: makes the score of a router's book.
        requests: those that come; by default the world's.
    """

    def __init__(
        self,
        world: World,
        policy: Callable[[World], Score],
        requests: Sequence[Request] | None = None,
    ) -> None:
        self._world = world
        self._requests = requests_of(world) if requests is None else requests
        self._workers = [Worker(number, world) for number in range(world.workers)]
        self._books = [Book(world.weights, policy(world)) for _ in range(world.routers)]
        self._told: list[float] = [-math.inf] * world.routers
        self._choices: dict[Request, Choice] = {}
        self._events: list[tuple[float, int, Worker | Request]] = []
        self._numbers = itertools.count()

    def run(self) -> Outcome:
        """Every request, to its end."""
        requests = self._requests
        for request in requests:
            self._at(request.at, request)
        while self._events:
            now, _, what = heapq.heappop(self._events)
            if isinstance(what, Request):
                self._arrive(what, now)
            elif what.until == now:
                self._end_step(what, now)
            elif not what.ticking:
                self._begin_step(what, now)
        counted = requests[len(requests) // 6 :]
        lasted = sorted((r.done - r.at) / 1e3 for r in counted)
        return Outcome(
            p50=lasted[len(lasted) // 2],
            p95=lasted[int(0.95 * (len(lasted) - 1))],
            found=sum(not r.missed for r in counted) / len(counted),
            busiest=max(w.busy for w in self._workers) / max(r.done for r in requests),
        )

    def _at(self, when: float, what: Worker | Request) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def _arrive(self, request: Request, now: float) -> None:
        book, seconds = self._books[request.router], now / 1e3
        if now - self._told[request.router] >= self._world.stale:
            self._told[request.router] = now
            for worker in self._workers:
                book.tell(str(worker.number), worker.load(now), seconds + 1.0)
        for entry in book.workers.values():
            entry.told = seconds + 1.0  # nobody is left out here
        choice = book.choose(request.peek, seconds + 1.0)
        self._choices[request] = choice
        worker = self._workers[int(choice.worker)]
        worker.accept(request, now)
        if not worker.ticking:
            self._begin_step(worker, now)

    def _begin_step(self, worker: Worker, now: float) -> None:
        if length := worker.tick(now):
            length *= self._world.slowed(sum(each.ticking for each in self._workers))
            worker.until = now + length
            self._at(worker.until, worker)
        elif worker.waiting:
            self._at(min(r.ready for r in worker.waiting), worker)

    def _end_step(self, worker: Worker, now: float) -> None:
        for request in list(worker.running):
            request.left -= 1
            if not request.left:
                request.done = now
                worker.running.remove(request)
                self._books[request.router].end(self._choices.pop(request), now / 1e3 + 1.0)
        worker.ticking = False
        self._begin_step(worker, now)

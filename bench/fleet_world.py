"""What the simulation of a fleet is told: machines, and requests after published workloads."""

from __future__ import annotations

import bisect
import random
import statistics
from dataclasses import dataclass

from bench.workloads import CONTROL_COUNT, CONTROLS, lora_rank, mask_ratio, zipf_rank
from tessera_gateway.fleet.load import Lines
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.score import Weights

SIDE = 64
TOKENS = SIDE * SIDE


@dataclass(frozen=True)
class World:
    """What is simulated.

    Attributes:
        workers, slots, steps: how many.
        cores: that the workers share, of which each uses one; 0 for as many as there are workers.
        dense: a dense step of one request.
        overhead: of a step beside that.
        copy: from host memory to the device, one step's recording of a whole picture.
        host: recordings that a worker's host memory holds.
        read: a recording from the store.
        templates, zipf: how many there are, and how uneven their popularity (0 is even).
        files, file, merge: LoRAs in a worker's memory, reading one, merging a set.
        nets, control: ControlNets in a worker's memory, loading one.
        control_step: what a ControlNet adds to a step.
        masks: a key of `workloads.MASKS`.
        edits: share of the requests.
        busy: share of the workers' time that the requests take if nothing is missing.
        requests: how many.
        routers: how many, each with its own share of the requests.
        stale: how old a worker's word is, at most.
    """

    workers: int = 8
    cores: int = 0
    slots: int = 8
    steps: int = 30
    dense: float = 58.0
    overhead: float = 3.0
    copy: float = 6.0
    host: int = 98
    read: float = 900.0
    templates: int = 970
    zipf: float = 1.0
    files: int = 100
    file: float = 500.0
    merge: float = 120.0
    nets: int = 5
    control: float = 2000.0
    control_step: float = 8.0
    masks: str = "public"
    edits: float = 1.0
    busy: float = 0.8
    requests: int = 3000
    routers: int = 1
    stale: float = 0.0
    seed: int = 1

    def slowed(self, busy: int) -> float:
        """How many times as long a step takes while so many workers compute."""
        return max(1.0, busy / self.cores) if self.cores else 1.0

    @property
    def weights(self) -> Weights:
        """What the score is told of this world."""
        return Weights(self.overhead, self.copy, 0.0, self.control, self.file, 0.0, 0.0)

    @property
    def lines(self) -> Lines:
        """A sparse step costs a twentieth of a dense one at least."""
        return Lines((0.0, self.dense / TOKENS), (0.05 * self.dense, 0.95 * self.dense / TOKENS))


@dataclass(eq=False)
class Request:
    """One request, and what became of it."""

    at: float
    peek: Peek
    compute: float
    copy: float
    left: int
    router: int = 0
    ready: float = 0.0
    missed: float = 0.0
    done: float = 0.0


def requests_of(world: World) -> list[Request]:
    """Requests at random times, so many that the workers are as busy as they should be."""
    rng = random.Random(world.seed)
    made = [_request(world, rng, number) for number in range(world.requests)]
    each = statistics.fmean(
        r.left * (max(r.compute, r.copy) + world.overhead / 3) + world.merge * bool(r.peek.loras)
        for r in made
    )
    now = 0.0
    for request in made:
        now += rng.expovariate(world.busy * world.workers / each)
        request.at, request.router = now, rng.randrange(world.routers)
    return made


def _request(world: World, rng: random.Random, number: int) -> Request:
    if rng.random() < world.edits:
        template = zipf_rank(world.templates, world.zipf, rng)
        mask = mask_ratio(world.masks, rng)
        peek = Peek("edit", job=str(number), template=str(template), mask=mask)
        compute, copy = world.dense * (0.05 + 0.95 * mask), world.copy * (1 - mask)
        return Request(0.0, peek, compute, copy, world.steps)
    loras = {lora_rank(rng) for _ in range(1 + (rng.random() < 0.91))}
    nets = {bisect.bisect(CONTROLS, rng.random()) for _ in range(1 + (rng.random() < 0.695))}
    peek = Peek(
        "generate",
        job=str(number),
        loras=tuple(sorted((str(name), 1.0) for name in loras)),
        controls=tuple(sorted(str(n if n < 8 else rng.randrange(8, CONTROL_COUNT)) for n in nets)),
    )
    return Request(0.0, peek, world.dense + world.control_step * len(nets), 0.0, world.steps)

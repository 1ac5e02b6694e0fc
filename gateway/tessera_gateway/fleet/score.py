"""When a request would be done on a worker: the score by which a router chooses.

Algorithm 2 of InstGenIE (arXiv:2505.20600) takes the cost of one step of a worker's batch with the
request in it: the larger one of computing it and loading its recordings. Here that is the length of
a tick, and the ticks are counted: requests leave when their steps are done, and others follow from
the queue. What the request needs and the worker lacks comes on top. Milliseconds everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from tessera_gateway.fleet import expected
from tessera_gateway.fleet.load import Load, Recorded, Running
from tessera_gateway.fleet.peek import Peek

LONG = 64
"""Of a longer queue, only so many requests are looked at one by one. The choice would take longer
with every request that waits, and in a long queue its order no longer matters.
"""


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker does not tell.

    Attributes:
        overhead: a tick beside its steps.
        copy: loading one step of a whole picture's recording from host memory to the device.
        overlap: share of the computing that hides the reading of recordings from disk.
        control: loading a ControlNet.
        file: reading a LoRA's file.
        merge: merging a set of LoRAs that is not kept, beyond what the worker tells of refits.
        warm: share of an edit's steps that are dense in any case.
    """

    overhead: float = 0.0
    copy: float = 0.0
    overlap: float = 1.0
    control: float = 4000.0
    file: float = 100.0
    merge: float = 100.0
    warm: float = 0.1


@dataclass(frozen=True)
class Work:
    """What is left of a request.

    Attributes:
        left: steps.
        compute, load: of one of them, on average: computing it, and loading recordings.
        ready: until what it needs is there.
        path: see `Prediction`.
    """

    left: float
    compute: float
    load: float = 0.0
    ready: float = 0.0
    path: str = "dense"


@dataclass(frozen=True)
class Prediction:
    """When a request would be done.

    Attributes:
        total: from now to the picture.
        alone: its own steps, if it were alone.
        missing: what it would wait for, by name: record, read, reader, files, refit, merge,
            controls.
        path: whether its steps would be dense, or sparse as far as possible.
    """

    total: float
    alone: float = 0.0
    missing: dict[str, float] = field(default_factory=dict)
    path: str = "dense"

    @property
    def found(self) -> bool:
        """Whether everything that it needs is there."""
        return not any(self.missing.values())

    def needs(self, peek: Peek) -> dict[str, bool]:
        """What a request needs beside the bundle, and whether it is in the worker's memory."""

        def lacks(*names: str) -> bool:
            return any(self.missing.get(name) for name in names)

        needs = {}
        if may_be_sparse(peek):
            needs["recording"] = self.path == "sparse" and not lacks("record", "read", "reader")
        if peek.loras:
            needs["lora"] = not lacks("files", "refit", "merge")
        if peek.controls:
            needs["controlnet"] = not lacks("controls")
        return needs


def may_be_sparse(peek: Peek) -> bool:
    """Whether a request can use a recording."""
    return peek.mask is not None and peek.mode != "dense"


def predict(
    load: Load, ahead: Sequence[Peek], peek: Peek, weights: Weights, *, gone: Iterable[str] = ()
) -> Prediction:
    """When a request would be done on a worker.

    Args:
        load: what the worker told last.
        ahead: what this router has sent there that has not ended, in order.
        peek: the request.
        weights: what the worker does not tell.
        gone: jobs that have ended since the worker told.
    """
    running, waiting, before, more = _queue(load, ahead, weights, gone)
    own, missing = work(load, peek, weights, before=before)
    alone = own.left * (max(own.compute, own.load) + weights.overhead)
    if more:
        done = max(_sum(running, waiting, more, weights), own.ready) + alone
    else:
        done = finish(running, waiting, own, slots=load.slots, overhead=weights.overhead)
    return Prediction(done + load.decode_ms, alone, missing, own.path)


def remaining(
    load: Load, ahead: Sequence[Peek], weights: Weights, *, gone: Iterable[str] = ()
) -> float:
    """Milliseconds until a worker has done all that it has: what runs, waits and is on its way.

    Slots do not matter: requests that are denoised together take their steps' time one after the
    other. What a request waits for counts once it is the longest of all. See `predict`.
    """
    running, waiting, _, more = _queue(load, ahead, weights, gone)
    return _sum(running, waiting, more, weights)


def _sum(running: list[Work], waiting: list[Work], more: int, weights: Weights) -> float:
    def steps(works: list[Work]) -> float:
        return sum(w.left * (max(w.compute, w.load) + weights.overhead) for w in works)

    longest = max((w.ready for w in waiting), default=0.0)
    share = more / len(waiting) if waiting else 0.0
    return steps(running) + steps(waiting) * (1.0 + share) + longest


def _queue(
    load: Load, ahead: Sequence[Peek], weights: Weights, gone: Iterable[str]
) -> tuple[list[Work], list[Work], list[Peek], int]:
    """What runs, what waits, the requests of the latter as far as they are known, and how many more
    wait, which are like these on average.
    """
    ended = set(gone)
    running = [running_work(load, r, weights) for r in load.running if r.job not in ended]
    told = {r.job for r in load.running} | {w.job for w in load.waiting}
    sent = {each.job: each for each in ahead if each.job}
    queue = [(sent.get(w.job), w.steps) for w in load.waiting if w.job not in ended]
    queue += [(each, 0) for each in ahead if each.job not in told]
    before = [known for known, _ in queue if known]
    waiting = [
        work(load, known, weights)[0] if known else _unknown(load, steps or None)
        for known, steps in queue[:LONG]
    ]
    return running, waiting, before, max(0, len(queue) - LONG)


def finish(
    running: Sequence[Work],
    waiting: Sequence[Work],
    own: Work,
    *,
    slots: int,
    overhead: float = 0.0,
) -> float:
    """When the last one in the queue is done.

    All that run move by one step in a tick, which lasts as long as the larger sum of computing and
    of loading. Who waits gets a slot in the order of the queue, once it is ready: a worker that has
    more requests than slots may give them in another order.
    """
    now = 0.0
    active = [[w.left, w.compute, w.load, False] for w in running]
    queue = [(w, False) for w in waiting] + [(own, True)]
    while True:
        for entry in [e for e in queue if e[0].ready <= now][: max(0, slots - len(active))]:
            queue.remove(entry)
            active.append([entry[0].left, entry[0].compute, entry[0].load, entry[1]])
        ready = [w.ready for w, _ in queue if w.ready > now] if len(active) < slots else []
        if not active:
            now = min(ready)
            continue
        tick = max(sum(a[1] for a in active), sum(a[2] for a in active)) + overhead
        steps = min(a[0] for a in active)
        if ready and tick > 0:
            steps = min(steps, (min(ready) - now) / tick)
        now = max(now + steps * tick, min(ready)) if ready and not steps else now + steps * tick
        for each in active:
            each[0] -= steps
        if any(own_one and left <= 1e-9 for left, _, _, own_one in active):
            return now
        active = [a for a in active if a[0] > 1e-9]


def running_work(load: Load, request: Running, weights: Weights) -> Work:
    """What is left of a request that is being denoised."""
    if not request.left:
        return Work(0.0, 0.0)
    size = (request.height, request.width)
    dense = load.lines.at("dense", *size, size[0] * size[1])
    sparse = load.lines.at("sparse", *size, request.active) if request.sparse else 0.0
    steps = request.sparse * sparse + (request.left - request.sparse) * dense
    copied = weights.copy * (1.0 - request.active / (size[0] * size[1])) * request.sparse
    return Work(request.left, request.branches * steps / request.left, copied / request.left)


def work(
    load: Load, peek: Peek, weights: Weights, *, before: Sequence[Peek] = ()
) -> tuple[Work, dict[str, float]]:
    """What a request is on a worker, and what it waits for there.

    Args:
        load: what the worker told last.
        peek: the request.
        weights: what the worker does not tell.
        before: requests whose recordings are read or made before.
    """
    if not peek.draws:
        return Work(0.0, 0.0), {}
    coming = {key_of(load, each) for each in before if each.mask is not None and not each.framed}
    missing = {"files": 0.0, "refit": 0.0, "merge": 0.0, "controls": 0.0}
    same = set().union(*(each.controls for each in before), load.controls)
    missing["controls"] = weights.control * sum(name not in same for name in peek.controls)
    if peek.loras:
        parsed = set(load.parsed).union(*([n for n, _ in each.loras] for each in before))
        missing["files"] = weights.file * sum(name not in parsed for name, _ in peek.loras)
        if not load.side and peek.loras != load.current:
            merged = peek.loras in load.merged or any(peek.loras == each.loras for each in before)
            missing |= {"refit": load.refit_ms, "merge": 0.0 if merged else weights.merge}
    steps, dense = len(expected.evaluations(load, peek)), _dense(load, peek)
    if not may_be_sparse(peek):
        return Work(steps, dense, ready=sum(missing.values())), missing
    recorded = None if peek.framed else load.recording(*key_of(load, peek))
    if not peek.framed and key_of(load, peek) in coming:
        recorded = _COMING
    if recorded is None and peek.mode != "sparse":
        return Work(steps, dense, ready=sum(missing.values())), missing
    return _edit(load, peek, weights, recorded, dense, missing, before)


def _edit(
    load: Load,
    peek: Peek,
    weights: Weights,
    recorded: Recorded | None,
    dense: float,
    missing: dict[str, float],
    before: Sequence[Peek],
) -> tuple[Work, dict[str, float]]:
    """An edit whose steps are sparse, with its recording or after that is made."""
    steps = len(expected.evaluations(load, peek))
    prompted = recorded is None or recorded is _COMING or recorded.prompted
    found = expected.ways(load, peek, prompted=prompted, warm=weights.warm)

    def cost(way: expected.Way) -> float:
        sparse = _sparse(load, peek, way.active)
        sparse = sparse if peek.mode == "sparse" else min(sparse, dense)
        return way.dense * dense + (steps - way.dense) * sparse

    way = found[0] if peek.mode == "sparse" else min(found, key=cost)
    compute = cost(way) / steps
    if recorded is None:
        missing["record"] = expected.texts(load, peek) * record_ms(load, peek)
    else:
        reads = read_ms(load, recorded, steps - way.dense)
        if reads or recorded is _COMING:
            missing["reader"] = _reader(load, before)
        missing["read"] = max(0.0, reads - weights.overlap * steps * compute)
    copied = weights.copy * (1.0 - (peek.mask or 0.0))
    return Work(steps, compute, copied, sum(missing.values()), "sparse"), missing


def read_ms(load: Load, recorded: Recorded, steps: int) -> float:
    """What reading costs of that many steps of a recording, without those in memory."""
    if not recorded.kept:
        return 0.0
    there = max(recorded.host, recorded.device) / recorded.kept
    return load.read_ms * steps * max(0.0, 1.0 - there)


def _reader(load: Load, before: Sequence[Peek]) -> float:
    """What the reader has to read before, each recording once."""
    keys = {key_of(load, each) for each in before if each.mask is not None and each.template}
    found = [load.recording(*key) for key in keys]
    return sum(read_ms(load, each, each.kept) for each in found if each)


_COMING = Recorded(kept=1, host=1)
"""A recording that another request waits for: it will be in memory."""


def _unknown(load: Load, steps: int | None) -> Work:
    """Another router's request, of which only the number of steps is known."""
    peek = replace(Peek("generate"), steps=steps)
    return Work(len(expected.evaluations(load, peek)), _dense(load, peek))


def record_ms(load: Load, peek: Peek) -> float:
    """What one recording of an edit's template takes: its own schedule's steps, without
    guidance.
    """
    steps = len(expected.evaluations(load, peek, whole=True))
    return steps * _dense(load, peek) / expected.branches(load, peek)


def key_of(load: Load, peek: Peek) -> tuple[str, str, int]:
    """Template, scheduler and steps of the recording that an edit can use."""
    defaults = load.defaults
    return peek.template, peek.scheduler or defaults.scheduler, peek.steps or defaults.steps


def _dense(load: Load, peek: Peek) -> float:
    """Of a dense step."""
    height, width = expected.latents(load, peek)
    cost = load.lines.at("dense", height, width, height * width)
    return expected.branches(load, peek) * cost


def _sparse(load: Load, peek: Peek, active: int) -> float:
    """Of a sparse step of so many latents."""
    cost = load.lines.at("sparse", *expected.latents(load, peek), active)
    return expected.branches(load, peek) * cost

"""Policies that `bench.fleet_sim` compares: scores that a router's book can choose by."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence

import msgspec

from bench.fleet_world import TOKENS, World
from tessera_gateway.fleet.book import Score
from tessera_gateway.fleet.load import Load, Recorded
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.score import Prediction, Weights, predict, running_work, work


def round_robin(world: World) -> Score:
    """One after the other."""
    asked = itertools.count()

    def score(
        load: Load, ahead: Sequence[Peek], peek: Peek, weights: Weights, *, gone: Iterable[str]
    ) -> Prediction:
        turn = next(asked) // world.workers
        return Prediction(float((int(load.worker) - turn) % world.workers))

    return score


def consistent_hashing(world: World) -> Score:
    """Where a template's name, or those of LoRAs and ControlNets, belong, unless that worker has
    more than 1.25 times its share of what is under way (bounded loads, arXiv:1608.01350).
    """
    under_way = dict.fromkeys(map(str, range(world.workers)), 0)

    def score(
        load: Load, ahead: Sequence[Peek], peek: Peek, weights: Weights, *, gone: Iterable[str]
    ) -> Prediction:
        under_way[load.worker] = len(ahead)
        bound = 1.25 * (sum(under_way.values()) + 1) / world.workers
        key = repr((peek.template, peek.loras, peek.controls, load.worker)).encode()
        place = int.from_bytes(hashlib.sha256(key).digest()[:4], "big")
        full = len(ahead) + 1 > max(1.0, bound)
        return Prediction(place + (2.0**33 if full else 0.0))

    return score


def by_count(
    load: Load, ahead: Sequence[Peek], peek: Peek, weights: Weights, *, gone: Iterable[str]
) -> Prediction:
    """Fewest requests under way."""
    return Prediction(float(len(_under_way(load, ahead, gone))))


def by_tokens(
    load: Load, ahead: Sequence[Peek], peek: Peek, weights: Weights, *, gone: Iterable[str]
) -> Prediction:
    """Fewest tokens under way, as servers of language models count."""
    total = 0.0 + sum(r.active or TOKENS for r in load.running if r.job not in set(gone))
    running = {r.job for r in load.running}
    total += sum(
        (1.0 if p.mask is None else p.mask) * TOKENS for p in ahead if p.job not in running
    )
    return Prediction(total)


def by_step(
    load: Load, ahead: Sequence[Peek], peek: Peek, weights: Weights, *, gone: Iterable[str]
) -> Prediction:
    """Algorithm 2 as published: the length of a step with the request in the batch."""
    ended, running = set(gone), {r.job for r in load.running}
    works = [running_work(load, r, weights) for r in load.running if r.job not in ended]
    whole = _everything(load)
    works += [work(whole, p, weights)[0] for p in (*ahead, peek) if p.job not in running]
    return Prediction(max(sum(w.compute for w in works), sum(w.load for w in works)))


def by_steps_left(
    load: Load, ahead: Sequence[Peek], peek: Peek, weights: Weights, *, gone: Iterable[str]
) -> Prediction:
    """The product's score without what is missing: as if every worker had everything."""
    free = msgspec.structs.replace(weights, control=0.0, file=0.0)
    return predict(_everything(load), ahead, peek, free, gone=gone)


class _All(Load, frozen=True, dict=True):
    def recording(self, template: str, scheduler: str, steps: int) -> Recorded | None:
        return Recorded(template, scheduler, steps, steps, steps)


def _everything(load: Load) -> Load:
    return _All(**{name: getattr(load, name) for name in load.__struct_fields__} | {"side": True})


def _under_way(load: Load, ahead: Sequence[Peek], gone: Iterable[str]) -> set[str]:
    told = {r.job for r in load.running} | {w.job for w in load.waiting}
    return (told - set(gone)) | {p.job for p in ahead}


POLICIES: dict[str, Callable[[World], Score]] = {
    "round robin": round_robin,
    "request count": lambda world: by_count,
    "token count": lambda world: by_tokens,
    "Algorithm 2": lambda world: by_step,
    "+ remaining steps": lambda world: by_steps_left,
    "consistent hashing": consistent_hashing,
    "+ locality": lambda world: predict,
}
"""By name; the last is the product's."""

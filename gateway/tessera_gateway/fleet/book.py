"""What a router knows of every worker, and its choice among them.

What the router itself has sent counts from the moment of the choice. So a worker's own word may be
some hundred milliseconds old, as long as it is one router that chooses, or few.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from tessera_gateway.fleet.learning import Costs, Drawn, Scales
from tessera_gateway.fleet.load import Load, Recorded
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.score import Prediction, Weights, key_of, predict, remaining

STALE_S = 3.0
"""A worker that has told nothing for so long is not chosen if another one can take the request."""

SLOW_S = 30.0
"""A worker that has told nothing for so long is not chosen at all. A machine that is busy may keep
it from telling, without keeping it from drawing.
"""

_JOBS = 100_000
"""Jobs whose worker is remembered."""

_CHOICES = 500
"""Choices that are remembered."""

_LATELY_S = 3.0
"""For so long, a worker may still tell of what was before: a job has ended, or a template came."""


class Score(Protocol):
    """See `score.predict`."""

    def __call__(
        self,
        load: Load,
        ahead: Sequence[Peek],
        peek: Peek,
        weights: Weights,
        *,
        gone: Iterable[str],
    ) -> Prediction:
        """When a request would be done."""
        ...


class NoWorker(Exception):
    """There is none that could take the request."""


@dataclass
class Entry:
    """One worker.

    Attributes:
        load: what it told last, with its costs as learned.
        told: when that was; 0 if it has told nothing, or has failed since.
        sent: what this router has sent there that has not ended, by its token, in order.
        brought, evicted: templates that this router has lately brought there, or evicted, and when.
        ended: jobs that have ended lately, and when.
    """

    load: Load = field(default_factory=Load)
    told: float = 0.0
    sent: dict[str, Peek] = field(default_factory=dict)
    brought: dict[str, float] = field(default_factory=dict)
    evicted: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def knows(self, template: str) -> bool:
        """Whether a template's picture is there."""
        told = template in self.load.templates and template not in self.evicted
        return told or template in self.brought

    def holds(self, peek: Peek) -> bool:
        """Whether it has the recording that an edit can use, or that is to be made."""
        told = self.load.recording(*key_of(self.load, peek)) is not None
        return told and peek.template not in self.evicted

    def idle(self, since: float) -> bool:
        """Whether it has nothing to do, by its own word later than `since` if it still tells."""
        jobs = [r.job for r in self.load.running] + [w.job for w in self.load.waiting]
        busy = bool(self.told) and (self.told <= since or any(j not in self.ended for j in jobs))
        return not self.sent and not busy


@dataclass(frozen=True)
class Choice:
    """A worker that was chosen, and why.

    Attributes:
        worker: its name.
        token: under which the request is in the book.
        scores: predicted milliseconds of every worker that could be chosen.
        missing: of each of them, what the request would wait for there, see `Prediction`.
        scale: that the prediction was made with.
        weights: the same.
    """

    worker: str
    token: str
    prediction: Prediction
    scores: dict[str, float]
    missing: dict[str, dict[str, float]]
    scale: float = 1.0
    weights: Weights = field(default_factory=Weights)


class Book:
    """Of one router. Workers have any names.

    Args:
        weights: of the score, the operator's.
        score: predicts when a request would be done.

    Attributes:
        choices: the latest requests for pictures, without masks and texts, and where each was sent.
        scales: what the costs that workers tell are multiplied by.
        draining: names of workers that get no more requests.
    """

    def __init__(self, weights: Weights | None = None, score: Score = predict) -> None:
        self._given = weights or Weights()
        self._score = score
        self.workers: dict[str, Entry] = {}
        self.choices: deque[tuple[Peek, Choice]] = deque(maxlen=_CHOICES)
        self.scales = Scales()
        self._costs = Costs()
        self.draining: set[str] = set()
        self._jobs: OrderedDict[str, str] = OrderedDict()
        self._tokens = 0

    @property
    def weights(self) -> Weights:
        """Of the score: the operator's, or what was learned in their place."""
        return self._costs.weights(self._given)

    def tell(self, worker: str, load: Load, now: float) -> None:
        """Note what a worker told; a new one is known from now on."""
        entry = self.workers.setdefault(worker, Entry())
        entry.load, entry.told = self.scales.scaled(worker, load, now), now
        for since in (entry.ended, entry.brought, entry.evicted):
            for key in [key for key, at in since.items() if now - at > _LATELY_S]:
                del since[key]

    def fail(self, worker: str) -> None:
        """A worker cannot be reached: it is not chosen until it tells something again."""
        if entry := self.workers.get(worker):
            entry.told = 0.0

    def forget(self, worker: str) -> None:
        """A worker is gone for good."""
        self.workers.pop(worker, None)
        self.scales.forget(worker)
        self.draining.discard(worker)

    def live(self, now: float, avoid: Collection[str] = ()) -> list[str]:
        """Workers that can be reached, by name."""
        return self._told_within(STALE_S, now, avoid)

    def open(self, now: float, avoid: Collection[str] = ()) -> list[str]:
        """Workers that can be chosen, by name."""
        return [name for name in self.live(now, avoid) if name not in self.draining]

    def reached(self, now: float, avoid: Collection[str] = ()) -> list[str]:
        """Live workers, and those that have told nothing for a while, by name."""
        return self._told_within(SLOW_S, now, avoid)

    def _told_within(self, seconds: float, now: float, avoid: Collection[str]) -> list[str]:
        return sorted(
            name
            for name, entry in self.workers.items()
            if entry.told and now - entry.told <= seconds and name not in avoid
        )

    def seconds(self, now: float) -> dict[str, float]:
        """Predicted work of every worker that can be reached."""
        return {
            name: 1e-3
            * remaining(
                entry.load, tuple(entry.sent.values()), self.weights, gone=tuple(entry.ended)
            )
            for name in self.live(now)
            for entry in (self.workers[name],)
        }

    def worker_of(self, job: str) -> str | None:
        """The worker that a job was sent to, if it is remembered."""
        return self._jobs.get(job)

    def choose(self, peek: Peek, now: float, *, avoid: Collection[str] = ()) -> Choice:
        """Choose a worker, and count the request as sent there until `end`.

        Args:
            peek: the request.
            now: the time.
            avoid: workers that are not to be chosen.

        Raises:
            NoWorker: none can be.
        """
        predictions = {
            name: self._predicted(self.workers[name], peek) for name in self._able(peek, now, avoid)
        }
        if not predictions:
            raise NoWorker("no worker of the fleet is ready")
        worker = min(
            predictions, key=lambda n: (predictions[n].total, len(self.workers[n].sent), n)
        )
        token = self._note(worker, peek, now)
        scores = {name: round(p.total, 1) for name, p in predictions.items()}
        missing = {
            name: {what: round(ms, 1) for what, ms in p.missing.items() if ms}
            for name, p in predictions.items()
        }
        scale = self.scales.of(worker, predictions[worker].path)
        prediction = predictions[worker]
        choice = Choice(worker, token, prediction, scores, missing, scale, self.weights)
        if peek.draws:
            self.choices.append((replace(peek, edited=None, words=()), choice))
        return choice

    def with_recording(
        self, peek: Peek, now: float, *, avoid: Collection[str]
    ) -> dict[str, Prediction]:
        """When an edit would be done on the workers that lack its recording, if they had it."""
        predictions = {}
        for name in self.open(now, avoid):
            entry = self.workers[name]
            if not entry.holds(peek):
                recorded = Recorded(*key_of(entry.load, peek), kept=1, host=1)
                recordings = (*entry.load.recordings, recorded)
                load = msgspec.structs.replace(entry.load, recordings=recordings)
                predictions[name] = self._predicted(replace(entry, load=load), peek)
        return predictions

    def knowing(self, template: str, now: float) -> list[str]:
        """Workers that have a template's picture, by name."""
        return [name for name in self.reached(now) if self.workers[name].knows(template)]

    def end(self, choice: Choice, now: float, *, fine: bool = True) -> None:
        """A request has been answered, or was given up.

        Args:
            choice: its worker.
            now: the time.
            fine: whether it was done, so that the picture that came along is there now.
        """
        entry = self.workers.get(choice.worker)
        if entry is None:
            return
        peek = entry.sent.pop(choice.token, None)
        if peek is not None and peek.job:
            entry.ended[peek.job] = now
        if peek is not None and _stays(peek):
            if fine:
                entry.brought[peek.template] = now
            elif not peek.registers:
                entry.brought.pop(peek.template, None)

    def drew(self, choice: Choice, drawn: Drawn, now: float) -> float:
        """How many times as long as predicted a picture took.

        What was missing teaches the weights. A scale is learned if the worker did what was
        predicted: the same path, and with all there.
        """
        prediction = choice.prediction
        ratio = drawn.total_ms / prediction.total
        self._costs.learn(prediction, choice.weights, drawn)
        if drawn.path == prediction.path and prediction.found:
            self.scales.learn(choice.worker, prediction.path, ratio, choice.scale, now)
        return ratio

    def evict(self, template: str, now: float, workers: Set[str]) -> None:
        """A template was evicted on some workers."""
        for name in workers & self.workers.keys():
            self.workers[name].brought.pop(template, None)
            self.workers[name].evicted[template] = now

    def _able(self, peek: Peek, now: float, avoid: Collection[str]) -> list[str]:
        """Those that know the template, if it is asked for by its id and any does: its picture may
        be nowhere else. What is registered again stays where it is recorded.

        Raises:
            NoWorker: those that know the template cannot be reached.
        """
        slow = [name for name in self.reached(now, avoid) if name not in self.draining]
        able = self.open(now, avoid) or slow
        if not peek.template:
            return able
        if peek.registers:
            holders = [name for name in able if self.workers[name].holds(peek)]
            if holders:
                return holders
        if peek.image:
            return able
        for names in (able, slow):
            if knowing := [name for name in names if self.workers[name].knows(peek.template)]:
                return knowing
        if any(entry.knows(peek.template) for entry in self.workers.values()):
            raise NoWorker(f"no worker that has template {peek.template} can be reached")
        return able

    def _predicted(self, entry: Entry, peek: Peek) -> Prediction:
        ahead = tuple(entry.sent.values())
        return self._score(entry.load, ahead, peek, self.weights, gone=entry.ended)

    def _note(self, worker: str, peek: Peek, now: float) -> str:
        self._tokens += 1
        token = str(self._tokens)
        entry = self.workers[worker]
        entry.sent[token] = peek
        if _stays(peek) and not peek.registers:  # of a copy, others know the id already
            entry.brought[peek.template] = now
        if peek.job:
            entry.ended.pop(peek.job, None)
            self._jobs[peek.job] = worker
            self._jobs.move_to_end(peek.job)
            if len(self._jobs) > _JOBS:
                self._jobs.popitem(last=False)
        return token


def _stays(peek: Peek) -> bool:
    """Whether the worker keeps the picture that comes along: no dense edit's."""
    return peek.image and peek.mode != "dense"

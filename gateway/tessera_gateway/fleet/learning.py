"""How far predictions are off, learned from what INFO says of the pictures that were drawn.

A prediction follows a model: ticks as long as the sum of what they compute. A GPU computes a batch
in less, a busy machine takes more, and requests that come later take their share. So what a picture
took in terms of its prediction is remembered per worker and path, and the costs that the worker
tells are multiplied by the median of that.

Who seems slow gets nothing, so nothing shows that it is slow no longer. So a scale above 1 is
forgotten when no picture has confirmed it for a while. One below 1 brings pictures, and so corrects
itself.

What is missing on a worker costs what `Weights` say until INFO has told it a few times.
"""

from __future__ import annotations

import statistics
from collections import deque

import msgspec

from tessera_gateway.fleet.load import Lines, Load
from tessera_gateway.fleet.score import Prediction, Weights

LATEST, ENOUGH = 32, 4
"""Pictures that a scale is learned from, and without how many it stays 1."""

LIMIT = 4.0
"""A scale is neither above this, nor below its inverse."""

FORGOTTEN_S = 30.0
"""After so long without a picture to learn from, a worker no longer counts as slow."""

WIDER = 10.0
"""A learned weight is at most so many times the operator's, and at least that part of it."""

PATHS = ("dense", "sparse")

LEARNED = ("control", "merge")
"""Weights that INFO tells something of."""


class Drawn(msgspec.Struct, frozen=True):
    """What INFO says of a picture.

    Attributes:
        total_ms: what it took, queues included.
        mode: dense, sparse or mixed.
        control_load_ms: until its ControlNets were loaded.
        refit_ms, switches: time of the refits for its LoRAs, and how many of the UNet there were.
    """

    total_ms: float = 0.0
    mode: str = "dense"
    control_load_ms: float = 0.0
    refit_ms: float = 0.0
    switches: int = 0

    @property
    def path(self) -> str:
        """Which of `PATHS` it took."""
        return "dense" if self.mode == "dense" else "sparse"


_DECODER = msgspec.json.Decoder(Drawn)


def read_info(info: bytes | None) -> Drawn | None:
    """What INFO says; `None` if there is none that can be read."""
    try:
        drawn = _DECODER.decode(info) if info else None
    except msgspec.MsgspecError:
        return None
    return drawn if drawn and drawn.total_ms > 0 else None


class Scales:
    """By worker and path."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], deque[float]] = {}
        self._scales: dict[tuple[str, str], float] = {}
        self._learned: dict[tuple[str, str], float] = {}

    def of(self, worker: str, path: str) -> float:
        """What its costs are multiplied by."""
        return self._scales.get((worker, path), 1.0)

    def learn(self, worker: str, path: str, ratio: float, scale: float, now: float) -> None:
        """Learn from a picture.

        Args:
            worker: that has drawn it.
            path: that it took.
            ratio: how many times as long as predicted it took.
            scale: that the prediction was made with.
            now: the time.
        """
        latest = self._latest.setdefault((worker, path), deque(maxlen=LATEST))
        self._learned[worker, path] = now
        latest.append(ratio * scale)
        if len(latest) >= ENOUGH:
            middle = statistics.median(latest)
            self._scales[worker, path] = min(max(middle, 1 / LIMIT), LIMIT)

    def forget(self, worker: str) -> None:
        """A worker is gone for good."""
        for path in PATHS:
            self._drop(worker, path)

    def _drop(self, worker: str, path: str) -> None:
        for known in (self._latest, self._scales, self._learned):
            known.pop((worker, path), None)

    def scaled(self, worker: str, load: Load, now: float) -> Load:
        """What a worker told, with its costs multiplied; scales above 1 may be forgotten before."""
        for path in PATHS:
            silent = now - self._learned.get((worker, path), now)
            if self.of(worker, path) > 1.0 and silent > FORGOTTEN_S:
                self._drop(worker, path)
        scales = {path: self.of(worker, path) for path in PATHS}
        if set(scales.values()) == {1.0}:
            return load
        lines = load.lines
        dense, sparse = (
            (scales[path] * constant, scales[path] * slope)
            for path, (constant, slope) in (("dense", lines.dense), ("sparse", lines.sparse))
        )
        return msgspec.structs.replace(load, lines=Lines(dense, sparse, lines.factors))


class Costs:
    """Of what was missing, by the name of the weight. Of all workers together, because each misses
    something rarely.
    """

    def __init__(self) -> None:
        self._latest: dict[str, deque[float]] = {}
        self._middles: dict[str, float] = {}

    def weights(self, given: Weights) -> Weights:
        """The operator's weights, with what was learned in their place."""
        found = {}
        for name, middle in self._middles.items():
            weight = getattr(given, name)
            found[name] = min(max(middle, weight / WIDER), weight * WIDER)
        return msgspec.structs.replace(given, **found) if found else given

    def learn(self, prediction: Prediction, weights: Weights, drawn: Drawn) -> None:
        """Learn from a picture that something was missing for, where INFO tells of it.

        Args:
            prediction: of the picture.
            weights: that it was made with.
            drawn: what INFO says.
        """
        missing = prediction.missing
        if missing.get("controls") and drawn.control_load_ms:
            nets = max(1, round(missing["controls"] / weights.control))
            self._note("control", drawn.control_load_ms / nets)
        if missing.get("merge") and drawn.switches == 1:
            self._note("merge", max(0.0, drawn.refit_ms - missing.get("refit", 0.0)))

    def _note(self, name: str, ms: float) -> None:
        latest = self._latest.setdefault(name, deque(maxlen=LATEST))
        latest.append(ms)
        if len(latest) >= ENOUGH:
            self._middles[name] = statistics.median(latest)

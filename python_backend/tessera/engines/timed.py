"""An engine whose runs are timed, and are spans of a trace."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from tessera import trace
from tessera.engines.base import Engine, EngineInfo


class TimedEngine:
    """Wraps an engine.

    Attributes:
        spent_ms: total milliseconds of its runs.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.spent_ms = 0.0

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`."""
        began = time.perf_counter()
        try:
            with trace.span("engine"):
                return self._engine.run(inputs)
        finally:
            self.spent_ms += 1e3 * (time.perf_counter() - began)

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Engine.refit`."""
        self._engine.refit(weights)

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        return self._engine.describe()

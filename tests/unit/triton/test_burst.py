"""Bursts of `denoise`: several ticks in one call of `execute`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.calls import load, message, sequence, stats_in


class TestBurst:
    """Several ticks in one call of `execute`, unless somebody has to be let in or out."""

    @pytest.fixture(autouse=True)
    def long_bursts(self, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(load("denoise"), "BURST_S", 100.0)
        monkeypatch.setattr(load("denoise"), "TURN_S", 100.0)

    def during_step(self, models: dict[str, Any], step: int, action: Callable[[], object]) -> None:
        """Have something happen while the network runs for the given time."""
        engine = models["bundle"].by_graph["unet_encoder"]
        plain = engine._run

        def run(tensors: Any) -> Any:
            if len(engine.batches) == step:
                action()
            return plain(tensors)

        engine._run = run

    def test_lasts_until_a_request_ends(self, models: dict[str, Any]) -> None:
        short, long = sequence(models, 1, STEPS=3), sequence(models, 2, STEPS=9)
        first, second = models["denoise"].execute([short, long])
        assert first.error is None
        assert second is None
        assert models["board"].tick == 3
        (last,) = models["denoise"].execute([long])
        assert stats_in(last.arrays())["ticks"] == 9
        assert models["board"].tick == 9

    def test_stops_for_a_newcomer(self, models: dict[str, Any]) -> None:
        request = sequence(models, 1, STEPS=9)
        newcomers: list[Any] = []
        self.during_step(models, 4, lambda: newcomers.append(sequence(models, 2, STEPS=2)))
        assert models["denoise"].execute([request]) == [None]
        assert models["board"].tick == 4
        assert models["denoise"].execute([request]) == [None]  # it is still on its way
        assert models["board"].tick == 5
        still, done = models["denoise"].execute([request, *newcomers])
        assert still is None
        stats = stats_in(done.arrays())
        assert (stats["first_tick"], stats["last_tick"]) == (6, 7)

    def test_does_not_stop_when_nobody_could_join(self, models: dict[str, Any]) -> None:
        requests = [sequence(models, i, STEPS=6) for i in range(4)]
        self.during_step(models, 2, lambda: sequence(models, 9))
        assert None not in models["denoise"].execute(requests)
        assert models["board"].tick == 6

    def test_stops_after_a_while_for_who_may_have_a_turn(
        self, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(load("denoise"), "TURN_S", 0.0)
        requests = [sequence(models, i, STEPS=9) for i in range(4)]
        newcomers: list[Any] = []
        self.during_step(models, 2, lambda: newcomers.append(sequence(models, 9, STEPS=2)))
        assert models["denoise"].execute(requests) == [None] * 4
        assert models["board"].tick == 2
        requests += newcomers
        models["denoise"].execute(requests)
        assert models["board"].tick > 3, "who waits here already is not on the way"

    def test_stops_for_a_cancelled_job(self, models: dict[str, Any]) -> None:
        stays, goes = (sequence(models, i, STEPS=9, JOB_ID=f"j{i}") for i in range(2))
        self.during_step(models, 3, lambda: models["board"].cancel("j1"))
        still, gone = models["denoise"].execute([stays, goes])
        assert still is None
        assert message(gone)[0] == "[CANCELLED] job j1 was cancelled after 3 steps"
        assert models["bundle"].by_graph["unet_encoder"].batches == [4, 4, 4, 2]

    def test_progress_is_seen_from_outside(self, models: dict[str, Any]) -> None:
        seen: list[int] = []
        request = sequence(models, 1, STEPS=5, JOB_ID="j")
        self.during_step(models, 4, lambda: seen.append(models["board"].status("j").step))
        models["denoise"].execute([request])
        assert seen == [3]

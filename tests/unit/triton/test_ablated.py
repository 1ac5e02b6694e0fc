"""`denoise` without one of its mechanisms, as `bench.ablations` serves it."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes.calls import config_of_denoise, sequence, stats_in


@pytest.fixture
def ablated(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`bench.ablated_models`, imported beside the fake of Triton's module."""
    monkeypatch.delitem(sys.modules, "bench.ablated_models", raising=False)
    return importlib.import_module("bench.ablated_models")


def opened(models: dict[str, Any], ablated: Any, name: str) -> Any:
    """`denoise` of an ablation, instead of the usual one."""
    models["denoise"]._adapters._hints.close()  # one socket for each board
    denoise = models["denoise"] = ablated.ABLATIONS[name]()()
    denoise.initialize({"model_config": json.dumps(config_of_denoise(4))})
    return denoise


def test_nobody_joins_a_static_batch_and_it_is_answered_together(
    models: dict[str, Any], ablated: Any
) -> None:
    denoise = opened(models, ablated, "static")
    short, long = sequence(models, 1, STEPS=2), sequence(models, 2, STEPS=4)
    assert denoise.execute([short, long]) == [None, None]
    late = sequence(models, 3, STEPS=1)
    answers = []
    for _ in range(3):
        answers = denoise.execute([short, long, late])
        if answers[0] is not None:
            break
    first, second, third = answers
    assert first.error is None
    assert second.error is None
    assert third is None
    assert models["bundle"].by_graph["unet_encoder"].batches == [4, 4, 2, 2]
    (third,) = denoise.execute([late])
    stats = stats_in(third.arrays())
    assert (stats["first_tick"], stats["ticks"]) == (5, 1)


def test_in_the_order_of_arrival_nobody_is_overtaken(
    models: dict[str, Any], ablated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablated.denoise, "in_turn", ablated.denoise.in_turn)
    denoise = opened(models, ablated, "by-arrival")
    long = [sequence(models, number, STEPS=50) for number in range(4)]
    short = sequence(models, 9, STEPS=1)
    for _ in range(3):
        assert denoise.execute([*long, short]) == [None] * 5


def test_controls_in_line_are_there_before_the_encoder_half(
    ablated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`start` returns when ControlNets have answered."""
    answer: Future[int] = Future()
    threading.Timer(0.05, answer.set_result, [3]).start()
    joined = SimpleNamespace(_answers={"edges": answer})
    monkeypatch.setattr(ablated.FanOut, "start", lambda *_: joined)
    fan_out = ablated.InLine(lambda *_: None)
    assert fan_out.start([]) is joined
    assert answer.done()


@pytest.mark.parametrize("name", ["no-bursts", "by-arrival", "controls-in-line", "loras-on-time"])
def test_every_ablation_is_a_model(
    name: str, models: dict[str, Any], ablated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, attribute in (
        (ablated.denoise, "BURST_S"),
        (ablated.denoise, "FanOut"),
        (ablated.denoise, "in_turn"),
        (ablated.UNetAdapters, "read_ahead"),
        (ablated.UNetAdapters, "_read_ahead_of_queue"),
    ):
        monkeypatch.setattr(owner, attribute, getattr(owner, attribute))
    denoise = opened(models, ablated, name)
    request = sequence(models, 1, STEPS=1)
    (answer,) = denoise.execute([request])
    assert answer.error is None

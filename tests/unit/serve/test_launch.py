"""A tritonserver that ends is started again at once, and at growing intervals if that goes on."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.errors import TesseraError
from tessera.serve import launch as module
from tessera.serve.launch import Launch
from tessera.terminal.console import Console


class FakeSupervisor:
    """Waits no time; a signal comes after some waits."""

    def __init__(self, waits: int) -> None:
        self.waited: list[float] = []
        self.said: list[str] = []
        self._waits = waits

    @property
    def interrupted(self) -> bool:
        return len(self.waited) >= self._waits

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def wait_interrupted(self, seconds: float) -> bool:
        self.waited.append(seconds)
        return self.interrupted


def waits(monkeypatch: pytest.MonkeyPatch, ends_after: list[float], *, fails: bool) -> list[float]:
    """How long is waited in front of each start, if tritonserver ends after so many seconds."""
    supervisor, clock = FakeSupervisor(len(ends_after)), [0.0]
    lives = iter([*ends_after, 0.0])

    def serve(*_: Any) -> FakeSupervisor:
        clock[0] += next(lives)
        if fails and supervisor.waited:
            raise TesseraError("it has not become ready")
        return supervisor

    monkeypatch.setattr(Launch, "_serve", serve)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with contextlib.redirect_stdout(None):
        assert object.__new__(Launch).run(Console(), 1.0) == 0
    return supervisor.waited


@pytest.mark.parametrize("fails", [False, True], ids=["it ends", "it does not become ready"])
def test_intervals_grow_to_a_minute(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    assert waits(monkeypatch, [1.0] * 9, fails=fails) == [0, 2, 4, 8, 16, 32, 60, 60, 60]


def test_one_that_has_served_for_long_is_started_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(monkeypatch, [1.0, 1.0, 3600.0, 1.0, 1.0], fails=False) == [0, 2, 0, 0, 2]

"""A tritonserver that ends is started again at once, and at growing intervals if that goes on."""

from __future__ import annotations

import contextlib
import errno
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.errors import TesseraError, Unavailable
from tessera.serve import launch as module
from tessera.serve.launch import Launch
from tessera.serve.tritonserver import Ports
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


def waits(
    monkeypatch: pytest.MonkeyPatch, ends_after: list[float], fails: Exception | None = None
) -> list[float]:
    """How long is waited in front of each start, if tritonserver ends after so many seconds."""
    supervisor, clock = FakeSupervisor(len(ends_after)), [0.0]
    lives = iter([*ends_after, 0.0])

    def serve(*_: Any) -> FakeSupervisor:
        clock[0] += next(lives)
        if fails and supervisor.waited:
            raise fails
        return supervisor

    monkeypatch.setattr(Launch, "_serve", serve)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with contextlib.redirect_stdout(None):
        assert object.__new__(Launch).run(Console(), 1.0) == 0
    return supervisor.waited


FAILS = {
    "it ends": None,
    "it does not become ready": TesseraError("it has not become ready"),
    "there is no room in shared memory": OSError(errno.ENOSPC, "No space left on device"),
}


@pytest.mark.parametrize("fails", FAILS.values(), ids=FAILS.keys())
def test_intervals_grow_to_a_minute(
    monkeypatch: pytest.MonkeyPatch, fails: Exception | None
) -> None:
    assert waits(monkeypatch, [1.0] * 9, fails) == [0, 2, 4, 8, 16, 32, 60, 60, 60]


def test_one_that_has_served_for_long_is_started_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(monkeypatch, [1.0, 1.0, 3600.0, 1.0, 1.0]) == [0, 2, 0, 0, 2]


@pytest.mark.parametrize("error", [Unavailable("the first picture failed: timed out"), None])
def test_a_restarted_server_is_not_ended_for_late_first_pictures(error: Exception | None) -> None:
    supervisor = FakeSupervisor(1)
    vars(supervisor)["beside"] = lambda work: work()

    def pictures(again: bool) -> None:
        Launch._first_pictures(made, supervisor, 64, "word", again=again)  # type: ignore[arg-type]

    def draw(*_: Any) -> None:
        if error:
            raise error

    made = object.__new__(Launch)
    vars(made).update(host="127.0.0.1", ports=Ports())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "warm_up", draw)
        pictures(again=True)
        assert supervisor.said == ([str(error)] if error else [])
        with pytest.raises(Unavailable) if error else contextlib.nullcontext():
            pictures(again=False)


class Ending(FakeSupervisor):
    """Of a tritonserver that has ended by itself, or has not become ready."""

    stopped = 0

    def watch(self) -> int:
        """Its exit status."""
        return -9

    def stop(self) -> None:
        """Counts."""
        self.stopped += 1


def test_a_signal_behind_a_restart_that_failed_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its start on, signals went to what looked after that one."""
    first, second = Ending(10), Ending(1)
    coming = iter([first, second])
    monkeypatch.setattr(Launch, "_supervisor", lambda *_: next(coming))

    def ready(launch: Launch, supervisor: Ending, *_: Any) -> bool:
        if supervisor is second:
            raise TesseraError("it has not become ready")
        return True

    monkeypatch.setattr(Launch, "_ready", ready)
    monkeypatch.setattr(Launch, "gateway", None, raising=False)
    assert object.__new__(Launch).run(Console(), 1.0) == 0
    assert (first.waited, second.waited) == ([0], [2])
    assert (first.stopped, second.stopped) == (1, 1)
    assert second.said[0] == "it has not become ready"

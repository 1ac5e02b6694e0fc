"""Processes of models that have been loaded again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tessera.serve import retired as module
from tessera.serve.retired import Retired
from tests.samples.programs import DOING, over_time


class Processes:
    """Those that have been ended, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ended: list[int] = []

    def monotonic(self) -> float:
        return self.now

    def kill(self, pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        self.ended.append(pid)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    processes = Processes()
    monkeypatch.setattr(module, "time", processes)
    monkeypatch.setattr(os, "kill", processes.kill)
    return processes


def test_what_stays_for_nothing_is_ended(processes: Processes) -> None:
    retired = Retired(has_job=lambda pid: False)
    retired.add(5)
    for now, ended in ((29.0, []), (31.0, [5])):
        processes.now = now
        retired.end({5: "render", 6: "render"}, loading=())
        assert processes.ended == ended
    assert 5 in retired
    retired.end({6: "render"}, loading=())
    assert 5 not in retired


@pytest.mark.parametrize(
    ("model", "has_job", "loading"),
    [("render", True, ()), ("edit", False, ("edit",))],
    ids=["a job", "not loaded yet"],
)
def test_what_may_be_at_work_stays(
    processes: Processes, model: str, has_job: bool, loading: tuple[str, ...]
) -> None:
    retired = Retired(has_job=lambda pid: has_job)
    retired.add(5)
    processes.now = 100.0
    retired.end({5: model}, loading=loading)
    processes.now = 120.0
    retired.end({5: model}, loading=())
    assert processes.ended == []


@pytest.mark.parametrize("model", ["templates", "jobs"])
@pytest.mark.parametrize(
    "did", [lambda at: (at * 0.01, 0), DOING["reading"]], ids=["computing", "reading"]
)
def test_of_models_without_jobs_only_what_does_nothing_is_ended(
    processes: Processes, model: str, did: Callable[[float], tuple[float, int]]
) -> None:
    """A template may be recorded there."""
    retired = Retired(work=over_time(did, 5))
    for pid in (5, 6):
        retired.add(pid)
    running = dict.fromkeys((5, 6, 7), model)
    for _ in range(100):
        retired.end(running, loading=(model,))
    for _ in range(61):
        retired.end(running, loading=())
    assert processes.ended == []
    retired.end(running, loading=())
    assert processes.ended == [5]
    for _ in range(200):
        retired.end({6: model, 7: model}, loading=())
    assert processes.ended == [5]

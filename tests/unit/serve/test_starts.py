"""Model processes that are stuck in their start."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tessera.serve.idle import Work
from tessera.serve.repository import LOADING, READY
from tessera.serve.starts import Starts
from tests.samples.programs import DOING, over_time, program
from tests.samples.waiting import PATIENCE_S

LIMIT_S = 60.0


@pytest.fixture
def idle() -> Iterator[subprocess.Popen[bytes]]:
    with program("sleep", "600") as process:
        yield process


@pytest.mark.parametrize("did", DOING.values(), ids=DOING.keys())
def test_only_what_does_nothing_in_its_start_is_ended(
    idle: subprocess.Popen[bytes], did: Callable[[float], tuple[float, int]]
) -> None:
    said: list[str] = []
    with program("sleep", "600") as other:
        starts = Starts(said.append, LIMIT_S, over_time(did, idle.pid))
        running = {idle.pid: "render", other.pid: "denoise"}
        for _ in range(121):
            starts.look(running, lambda model: LOADING)
        assert (idle.poll(), said) == (None, [])
        for _ in range(300):
            starts.look(running, lambda model: LOADING)
        assert idle.wait(PATIENCE_S) == -signal.SIGKILL
        assert other.poll() is None
    assert said == [
        "a process of model render has done nothing for 60 s while it started; ending it"
    ]


@pytest.mark.parametrize("state", [READY, "UNLOADING", "UNAVAILABLE", "", None])
def test_an_idle_process_of_a_model_that_is_not_being_loaded_stays(
    idle: subprocess.Popen[bytes], state: str | None
) -> None:
    said: list[str] = []
    starts = Starts(said.append, LIMIT_S, over_time(lambda at: (0, 0), idle.pid))
    for _ in range(300):
        starts.look({idle.pid: "render"}, lambda model: state)
    assert (idle.poll(), said) == (None, [])
    for _ in range(300):  # its model is loaded again: its own start was over if it has been ready
        starts.look({idle.pid: "render"}, lambda model: LOADING)
    assert len(said) == (state != READY)


def ended_in_its_start(states: list[str | None], running: list[int]) -> list[bool]:
    """What each further look says, ten seconds apart, once a stuck process (1) was ended."""
    now = [0.0]
    starts = Starts(lambda line: None, LIMIT_S, lambda pid: Work(now[0], 0, 0), lambda: now[0])
    for now[0] in range(62):
        starts.look({2**22 + 1: "render"}, lambda model: LOADING)
    said, coming = [], iter(states)
    for _ in states:
        now[0] += 10
        answers = {"render": next(coming)}
        said.append(starts.look({2**22 + pid: "render" for pid in running}, answers.get))
    return said


def test_a_server_that_waits_for_an_ended_process_has_to_end() -> None:
    """That is any state but LOADING, and no new process, for as long as a start may stall."""
    waits = [LOADING] * 6
    assert ended_in_its_start([*waits, LOADING], []) == [False] * 6 + [True]
    assert ended_in_its_start([*waits, None, LOADING], []) == [False] * 7 + [True]
    assert not any(ended_in_its_start([*waits, "UNAVAILABLE", LOADING, LOADING], []))
    assert not any(ended_in_its_start([*waits, LOADING, LOADING], [2]))


def test_a_server_stalls_when_all_of_it_does_nothing() -> None:
    for did, expected in ((DOING["computing"], False), (lambda at: (0.0, 0), True)):
        starts = Starts(lambda line: None, LIMIT_S, over_time(did, idle=1))
        assert [starts.stalled((1, 2)) for _ in range(300)][-1] is expected
    starts = Starts(lambda line: None, LIMIT_S, over_time(DOING["reading"], idle=1))
    assert not any(starts.stalled(()) for _ in range(300))

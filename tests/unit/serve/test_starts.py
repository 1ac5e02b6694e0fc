"""Model processes that are stuck in their start."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tessera.serve.repository import LOADING, READY
from tessera.serve.starts import Starts, Work, work_of
from tests.samples.waiting import PATIENCE_S

LIMIT_S = 60.0
BUSY = "while True: pass"
READING = """
import time
while True:
    open("/dev/zero", "rb").read(1 << 20)
    time.sleep(0.05)
"""


@contextmanager
def program(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(words)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def idle() -> Iterator[subprocess.Popen[bytes]]:
    with program("sleep", "600") as process:
        yield process


def over_time(did: Callable[[float], tuple[float, int]], idle: int) -> Callable[[int], Work]:
    """Each look is half a second later: what processes have done then; `idle` has done nothing."""
    looks: dict[int, int] = {}

    def work(pid: int) -> Work:
        looks[pid] = looks.get(pid, -1) + 1
        at = looks[pid] / 2
        return Work(at, *((0.1, 100) if pid == idle else did(at)))

    return work


DOING: dict[str, Callable[[float], tuple[float, int]]] = {
    "computing": lambda at: (at * 0.005, 0),
    "reading": lambda at: (0.0, int(at * 5000)),
}


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
    for now[0] in (0.0, 70.0):
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


def test_what_processes_do_is_seen(idle: subprocess.Popen[bytes]) -> None:
    def has_worked(pid: int, before: Work) -> bool:
        now = work_of(pid)
        return now is not None and now.is_more_than(before)

    for code in (BUSY, READING):
        with program(sys.executable, "-c", code) as busy:
            before = {pid: work_of(pid) for pid in (idle.pid, busy.pid)}
            first = before[busy.pid]
            assert first is not None
            end = time.monotonic() + PATIENCE_S
            while not has_worked(busy.pid, first):
                assert time.monotonic() < end, "it was not seen to work"
                time.sleep(0.02)
    still = before[idle.pid]
    assert still is not None
    assert not has_worked(idle.pid, still)
    idle.kill()
    idle.wait()
    assert work_of(idle.pid) is None

"""What processes do."""

from __future__ import annotations

import sys
import time

import pytest

from tessera.serve.idle import Idle, Work, work_of
from tests.samples.programs import program
from tests.samples.waiting import PATIENCE_S

BUSY = "while True: pass"
READING = """
import time
while True:
    open("/dev/zero", "rb").read(1 << 20)
    time.sleep(0.05)
"""
CHILD_BUSY = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BUSY!r}])
"""
CHILDREN_ENDED = """
import subprocess, sys
while True:
    subprocess.run([sys.executable, "-c", "sum(range(1000))"])
"""


@pytest.mark.parametrize(
    "code",
    [BUSY, READING, CHILD_BUSY, CHILDREN_ENDED],
    ids=["computes", "reads", "its child computes", "its children have ended"],
)
def test_what_a_process_does_is_seen(code: str) -> None:
    with program(sys.executable, "-c", code) as busy:
        first, end = work_of(busy.pid), time.monotonic() + PATIENCE_S
        assert first is not None
        while not has_worked(busy.pid, first):
            assert time.monotonic() < end, "it was not seen to work"
            time.sleep(0.02)


def test_a_process_that_sleeps_or_has_ended_does_nothing() -> None:
    with program("sleep", "600") as idle:
        still = work_of(idle.pid)
        time.sleep(0.2)
        assert still is not None
        assert not has_worked(idle.pid, still)
    assert work_of(idle.pid) is None


def test_a_pause_of_the_whole_machine_counts_as_one_look() -> None:
    times = iter([0.0, 1.0, 2.0, 1000.0, 1001.0, 1002.0, 1003.0])
    idle = Idle(4.0, lambda pid: Work(next(times), 0.0, 0))
    assert [idle.among({1: None}) for _ in range(6)] == [set()] * 5 + [{1}]


def test_it_counts_anew_when_there_is_something_else_to_do() -> None:
    times = iter(range(100))
    idle = Idle(2.0, lambda pid: Work(float(next(times)), 0.0, 0))
    found = [idle.among({1: task} if task else {}) for task in "aaabbb"]
    found += [idle.among({})] + [idle.among({1: "b"}) for _ in range(4)]
    assert found == [set()] * 10 + [{1}]


def has_worked(pid: int, before: Work) -> bool:
    now = work_of(pid)
    return now is not None and now.is_more_than(before)

"""What processes do."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.serve.idle import Idle, Work, own_work_of, work_of
from tests.samples.programs import program
from tests.samples.waiting import PATIENCE_S, comes

BUSY = "while True: pass"
READING = """
import time
while True:
    open("/dev/zero", "rb").read(1 << 20)
    time.sleep(0.05)
"""
MAPPED = """
import mmap, os, sys, time
with open(sys.argv[1], "r+b") as file:
    while True:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            sum(memory[at] for at in range(0, len(memory), mmap.PAGESIZE))
        time.sleep(0.5)
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


def test_what_is_read_from_memory_that_maps_a_file_counts(tmp_path: Path) -> None:
    """As the weights of a large model are."""
    with (tmp_path / "weights").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    with program(sys.executable, "-c", MAPPED, str(tmp_path / "weights")) as reader:

        def from_storage() -> int:
            lines = Path(f"/proc/{reader.pid}/io").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))

        first, end = from_storage(), time.monotonic() + 10
        while from_storage() < first + (1 << 20):
            if time.monotonic() > end:
                pytest.skip("the storage of temporary files does not count what is read from it")
            time.sleep(0.05)
        before = work_of(reader.pid)
        assert before is not None
        without_cpu = replace(before, cpu_seconds=1e9)
        comes(lambda: has_worked(reader.pid, without_cpu))
        own = own_work_of(reader.pid)
        assert own is not None
        without_cpu = replace(own, cpu_seconds=1e9)
        comes(lambda: has_worked(reader.pid, without_cpu, own_work_of))


@pytest.mark.parametrize("code", [READING, CHILD_BUSY], ids=["by calls", "its child"])
def test_what_is_not_a_processes_own_work(code: str) -> None:
    """Files of the system that a process reads, or what a process of its does."""
    with program(sys.executable, "-c", code) as busy:
        first = work_of(busy.pid)
        assert first is not None
        comes(lambda: has_worked(busy.pid, replace(first, cpu_seconds=first.cpu_seconds + 1)))
        own, all_of_it = own_work_of(busy.pid), work_of(busy.pid)
        assert own is not None
        assert all_of_it is not None
        assert own.bytes_read < all_of_it.bytes_read or own.cpu_seconds < all_of_it.cpu_seconds / 2


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


def has_worked(pid: int, before: Work, work: Callable[[int], Work | None] = work_of) -> bool:
    now = work(pid)
    return now is not None and now.is_more_than(before)

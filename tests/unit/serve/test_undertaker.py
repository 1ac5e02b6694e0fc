"""What ends with a process that is killed outright."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.samples.waiting import PATIENCE_S

PROGRAM = """
import subprocess, sys, time
from tessera.serve.undertaker import Undertaker
code = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
command = [sys.executable, "-c", code + "; time.sleep(600)"]
child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
undertaker = Undertaker.of(child.pid)
print(child.pid, int(child.stdout.readline()), flush=True)
sys.stdin.readline()
undertaker.dismiss()
"""


@pytest.fixture
def started() -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdout
    return program, [psutil.Process(int(pid)) for pid in program.stdout.readline().split()]


def test_a_whole_group_ends_with_a_program_that_is_killed(
    started: tuple[subprocess.Popen[bytes], list[psutil.Process]],
) -> None:
    program, group = started
    assert psutil.Process(program.pid).children() == group[:1]
    program.kill()
    program.communicate()
    _, alive = psutil.wait_procs(group, timeout=PATIENCE_S)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []


def test_nothing_is_killed_once_it_was_dismissed(
    started: tuple[subprocess.Popen[bytes], list[psutil.Process]],
) -> None:
    program, group = started
    every = psutil.process_iter(["cmdline"])  # of which some end meanwhile
    waiting = [p for p in every if str(group[0].pid) in (p.info["cmdline"] or ())]
    program.communicate(b"\n")
    assert program.returncode == 0
    assert len(waiting) == 1
    psutil.wait_procs(waiting, timeout=PATIENCE_S)
    assert not waiting[0].is_running()
    assert all(each.is_running() for each in group)
    for each in group:
        each.kill()

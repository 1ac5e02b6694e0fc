"""Model processes that hang while they serve."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from tessera.errors import Unavailable
from tessera.serve.hangs import Hangs
from tessera.serve.idle import is_stopped
from tessera.shared.board import Board
from tests.samples.programs import DOING, over_time, program
from tests.samples.waiting import PATIENCE_S, comes

LIMIT_S = 60.0
STOPPED = "a process of model jobs has been stopped for 60 s; ending it"
SENTENCE = "a process of model denoise has done nothing for 60 s though it had work; ending it"


@pytest.fixture
def idle() -> Iterator[subprocess.Popen[bytes]]:
    with program("sleep", "600") as process:
        yield process


@pytest.mark.parametrize("did", DOING.values(), ids=DOING.keys())
def test_only_what_does_nothing_is_ended(
    idle: subprocess.Popen[bytes], did: Callable[[float], tuple[float, int]]
) -> None:
    said: list[str] = []
    with program("sleep", "600") as other:
        running = {idle.pid: "denoise", other.pid: "encode"}
        hangs = Hangs(said.append, all_work, LIMIT_S, over_time(did, idle.pid))
        for _ in range(121):
            hangs.end(running)
        assert (idle.poll(), said) == (None, [])
        for _ in range(300):
            hangs.end(running)
        assert idle.wait(PATIENCE_S) == -signal.SIGKILL
        assert other.poll() is None
    assert said == [SENTENCE]


def test_a_process_without_work_stays(idle: subprocess.Popen[bytes]) -> None:
    """Nor is what it has done before counted when it gets work."""
    said: list[str] = []
    tasks: dict[int, Hashable] = {}
    work = over_time(lambda at: (0, 0), idle.pid)
    hangs = Hangs(said.append, lambda running: tasks, LIMIT_S, work)
    for task in (None, 1, None, 1, 2):
        tasks = {idle.pid: task} if task else {}
        for _ in range(100):
            hangs.end({idle.pid: "denoise"})
    assert (idle.poll(), said) == (None, [])
    for _ in range(22):
        hangs.end({idle.pid: "denoise"})
    assert said == [SENTENCE]


def test_one_that_is_stopped_has_its_work_until_it_goes_on(idle: subprocess.Popen[bytes]) -> None:
    """Triton takes it away meanwhile."""
    said: list[str] = []
    tasks: dict[int, Hashable] = {}
    hangs = Hangs(said.append, lambda _: tasks, LIMIT_S, over_time(lambda at: (0, 0), idle.pid))
    for number, expected in ((signal.SIGCONT, []), (signal.SIGSTOP, [SENTENCE])):
        idle.send_signal(number)
        stops = number == signal.SIGSTOP
        comes(partial(lambda stops: is_stopped(idle.pid) is stops, stops))
        for look in range(131):
            tasks = {} if look else {idle.pid: 1}
            hangs.end({idle.pid: "denoise"})
        assert said == expected


def test_one_that_stays_stopped_is_ended_without_work_and_before_others(
    idle: subprocess.Popen[bytes],
) -> None:
    """They may wait for a lock that it holds, and then have their time anew."""
    said: list[str] = []
    idle.send_signal(signal.SIGSTOP)
    comes(lambda: is_stopped(idle.pid))
    with program("sleep", "600") as other:
        running = {idle.pid: "jobs", other.pid: "denoise"}
        work = over_time(lambda at: (0, 0), idle.pid)
        hangs = Hangs(
            said.append, lambda left: {p: 1 for p in left if p != idle.pid}, LIMIT_S, work
        )
        for _ in range(121):
            hangs.end(running)
        assert said == []
        for _ in range(100):
            hangs.end(running)
        assert said == [STOPPED]
        assert idle.wait(PATIENCE_S) == -signal.SIGKILL
        for _ in range(30):
            hangs.end({other.pid: "denoise"})
        assert said == [STOPPED, SENTENCE]


HOLDER = """
import sys, time
from pathlib import Path
from tessera.shared.board import Board
with Board(Path(sys.argv[1]))._locked():
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_the_board_is_free_when_a_stopped_holder_was_ended(tmp_path: Path) -> None:
    board, said = tmp_path / "board", list[str]()
    line = [sys.executable, "-c", HOLDER, str(board)]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"locked\n"
        holder.send_signal(signal.SIGSTOP)
        comes(lambda: is_stopped(holder.pid))
        with pytest.raises(Unavailable, match="another process keeps the lock of the job board"):
            Board(board, patience=0.05)
        work = over_time(lambda at: (0, 0), holder.pid)
        hangs = Hangs(said.append, lambda _: {}, LIMIT_S, work)
        for _ in range(130):
            hangs.end({holder.pid: "jobs"})
    assert said == [STOPPED]
    Board(board).open("a", 20)


def all_work(running: Mapping[int, str]) -> Mapping[int, Hashable]:
    return dict.fromkeys(running, 1)

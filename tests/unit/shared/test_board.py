"""The job board, within one process and across several."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tessera.errors import InvalidInput, Unavailable, UnknownJob
from tessera.shared import board as module
from tessera.shared import ends, rows
from tessera.shared.board import Board
from tessera.shared.rows import Phase
from tessera.shared.settings import default_board
from tests.samples.boards import Clock
from tests.samples.plans import plan as plan_of
from tests.samples.waiting import PATIENCE_S


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "board")


def test_a_step_of_two_evaluations_counts_whole(board: Board, clock: Clock) -> None:
    """Its time is that since the step before, and not since its own first evaluation."""
    slot, ticket = board.open("j", 3)
    for step in (1, 1, 2, 2, 3):
        clock.now += 5
        board.progress(slot, ticket, Phase.DENOISING, step)
    assert board.step_ms == 10_000
    assert board.status("j").step == 3


def test_threads_that_share_a_board_wait_for_each_other(tmp_path: Path) -> None:
    """As `execute` and the thread that publishes metrics: a lock of a file knows no threads."""
    path = tmp_path / "board"
    board = Board(path, patience=0.05)
    board.open("a", 1)
    with ThreadPoolExecutor(1) as other:
        with board._locked():
            with pytest.raises(Unavailable, match="keeps the lock of the job board"):
                other.submit(board.cancel, "a").result()
            with pytest.raises(Unavailable, match="keeps the lock of the job board"):
                Board(path, patience=0.05)
        assert other.submit(board.cancel, "a").result().cancelled
        with pytest.raises(UnknownJob):
            board.cancel("b")
        assert other.submit(board.cancel, "a").result().cancelled


def test_a_job_from_queue_to_end(board: Board) -> None:
    slot, ticket = board.open("a", 20)
    assert board.holds(slot, ticket)
    assert vars(board.status("a")) | {"seconds": 0} == {
        "job_id": "a",
        "phase": "queued",
        "step": 0,
        "total": 20,
        "cancelled": False,
        "seconds": 0,
        "place": 1,
        "seconds_left": None,
    }
    board.progress(slot, ticket, Phase.DENOISING, 7)
    assert (board.status("a").phase, board.status("a").step) == ("denoising", 7)
    board.progress(slot, ticket, Phase.DECODING)
    assert (board.status("a").phase, board.status("a").step) == ("decoding", 7)
    board.close(slot, ticket, Phase.DONE)
    assert board.status("a").phase == "done"
    assert not board.holds(slot, ticket)
    assert board.running() == 0


def test_a_job_that_was_lost_does_not_run_for_ever(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lost", "cancelled"):
        board.open(name, 1)
    assert board.running() == 2
    board.cancel("cancelled")
    assert board.running() == 1
    monkeypatch.setattr(ends, "SWEEP_S", -1.0)
    monkeypatch.setattr(rows, "ABANDONED_S", -1.0)
    assert board.running() == 0
    assert board.status("lost").phase == "failed"


def test_the_first_end_stays(board: Board) -> None:
    job = board.open("a", 1)
    board.close(*job, Phase.CANCELLED)
    board.close(*job, Phase.DONE)
    assert board.status("a").phase == "cancelled"


def test_cancel_reaches_another_view_of_the_board(board: Board, tmp_path: Path) -> None:
    job = board.open("a", 1)
    other = Board(tmp_path / "board")
    assert not board.cancelled(*job)
    assert other.cancel("a").cancelled
    assert board.cancelled(*job)


def test_cancelling_an_ended_job_changes_nothing(board: Board) -> None:
    job = board.open("a", 1)
    board.close(*job, Phase.DONE)
    assert not board.cancel("a").cancelled
    assert board.status("a").phase == "done"


def test_a_step_of_the_clock_changes_nothing(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by NTP, or by an operator who sets the time."""
    slot, ticket = board.open("a", 3, deadline=time.monotonic() + 600)
    for now in (time.time() + 3600, time.time() - 3600):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert board.running() == 1
        board.check_wanted(plan_of(slot=slot, ticket=ticket, job_id="a", deadline=1e12))
        assert 0 <= board.status("a").seconds < PATIENCE_S
        monkeypatch.undo()


def test_unknown_jobs_are_named(board: Board) -> None:
    for ask in (board.status, board.cancel):
        with pytest.raises(UnknownJob, match="JOB_ID is 'nobody'"):
            ask("nobody")


def test_the_id_of_a_running_job_is_refused_and_of_an_ended_one_reused(board: Board) -> None:
    first = board.open("a", 1)
    with pytest.raises(InvalidInput, match="JOB_ID is 'a'; accepted: an id that no running job"):
        board.open("a", 1)
    board.close(*first, Phase.FAILED)
    slot, ticket = board.open("a", 5)
    assert slot == first[0]
    assert ticket != first[1]
    assert board.status("a").phase == "queued"


def test_a_late_writer_does_not_touch_the_next_job_in_its_row(board: Board) -> None:
    old = board.open("a", 1)
    board.close(*old, Phase.DONE)
    new = board.open("a", 9)
    board.progress(*old, Phase.DENOISING, 3)
    board.close(*old, Phase.FAILED)
    assert not board.cancelled(*old)
    assert board.holds(*new)
    assert vars(board.status("a"))["step"] == 0


def test_a_full_board_refuses_and_reuses_the_longest_ended(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [board.open(f"j{i}", 1) for i in range(module.CAPACITY)]
    with pytest.raises(Unavailable, match="4096 jobs are running"):
        board.open("more", 1)
    board.cancel("j7")
    assert board.open("given up", 1)[0] == 7
    board.close(*jobs[5], Phase.DONE)
    board.close(*jobs[3], Phase.DONE)
    assert board.open("more", 1)[0] == 5
    with pytest.raises(UnknownJob):
        board.status("j5")
    monkeypatch.setattr(ends, "SWEEP_S", -1.0)
    monkeypatch.setattr(rows, "ABANDONED_S", -1.0)
    assert board.open("again", 1)[0] == 3  # the longest ended
    assert board.status("j0").phase == "failed"


@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.DENOISING, Phase.DECODING])
def test_a_cancelled_job_that_denoise_does_not_have_gives_its_id_away(
    board: Board, phase: Phase
) -> None:
    """Its requests may have been lost between two models, and nobody is left to close it."""
    old = board.open("a", 1)
    board.progress(*old, phase)
    with pytest.raises(InvalidInput, match="an id that no running job has"):
        board.open("a", 1)
    board.cancel("a")
    if phase == Phase.DENOISING:
        with pytest.raises(InvalidInput):
            board.open("a", 1)
    else:
        new = board.open("a", 1)
        board.close(*old, Phase.FAILED)
        assert board.holds(*new)
        assert not board.cancelled(*new)


def test_waiting_means_opened_lately_and_not_begun(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Board(tmp_path / "board")
    assert not other.waiting()
    first = board.open("a", 1)
    assert other.waiting()
    second = board.open("b", 1)
    other.progress(*first, Phase.DENOISING, 1)
    assert other.waiting()
    board.close(*second, Phase.CANCELLED)
    assert not other.waiting()
    board.open("c", 1)
    assert other.waiting()
    monkeypatch.setattr(module, "ARRIVES_WITHIN_S", 0.0)
    assert not other.waiting()


def test_a_wild_slot_is_nobodys(board: Board) -> None:
    assert not board.holds(-1, 1)
    assert not board.holds(10**9, 1)


def test_ticks_count_up_for_everybody(board: Board, tmp_path: Path) -> None:
    assert [board.begin_tick(), board.begin_tick()] == [1, 2]
    assert Board(tmp_path / "board").tick == 2


def _open_many(path: Path, prefix: str) -> list[tuple[int, int]]:
    board = Board(path)
    return [board.open(f"{prefix}{i}", 1) for i in range(100)]


def test_processes_never_share_a_row(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        groups = pool.starmap(_open_many, [(tmp_path / "board", p) for p in "abcd"])
    rows = [row for group in groups for row in group]
    assert len({slot for slot, _ in rows}) == len({ticket for _, ticket in rows}) == 400


def test_siblings_agree_on_the_board_and_others_do_not() -> None:
    code = "from tessera.shared.settings import default_board as b; print(b())"
    paths = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert len(paths) == 1
    assert paths != {f"{default_board()}\n"}


def test_a_board_takes_all_its_room_when_it_is_made(tmp_path: Path) -> None:
    """A page of shared memory that is full ends the process that writes to it."""
    Board(tmp_path / "board")
    made = (tmp_path / "board").stat()
    assert 512 * made.st_blocks >= made.st_size > 0


def test_a_watched_job_is_watched_for_a_while(board: Board, tmp_path: Path) -> None:
    slot, ticket = board.open("a", 1)
    assert not board.watched(slot, ticket)
    found, status = Board(tmp_path / "board").watch("a")
    assert (found, status.job_id) == (ticket, "a")
    assert board.watched(slot, ticket)
    assert not board.watched(slot, ticket + 1)
    with pytest.raises(UnknownJob):
        board.watch("nobody")


def test_a_job_that_nobody_asks_for_any_more_is_not_watched(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = board.open("a", 1)
    monkeypatch.setattr(module, "WATCHED_S", 0.0)
    board.watch("a")
    assert not board.watched(*job)
    monkeypatch.undo()
    board.watch("a")
    board.close(*job, Phase.DONE)
    assert not board.watched(*board.open("a", 1)), "the next job of that id is another"

"""A full queue, and full memory, refuse at once and say how full they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.errors import Unavailable
from tessera.shared.board import Board
from tessera.shared.rows import Phase

SLOTS = 2


@pytest.fixture
def board(tmp_path: Path) -> Board:
    board = Board(tmp_path / "board")
    board.tell_slots(SLOTS)
    return board


def test_a_full_queue_says_how_long_it_is(board: Board) -> None:
    for name in ("a", "b"):
        board.progress(*board.open(name, 20), Phase.DENOISING, 10)
    board._header["step_s"] = 2.0
    board.check_room(2)
    for name in ("c", "d"):
        board.check_room(2)
        board.open(name, 10)
    with pytest.raises(Unavailable, match="the queue is full: 2 jobs wait, and one more would "):
        board.check_room(2)
    with pytest.raises(Unavailable, match="begin in about 40 s; try again later"):
        board.check_room(2)  # two run for 20 s more, and two for 20 s behind them
    with pytest.raises(Unavailable, match="begin in about 20 s"):
        board.check_room(2, priority=1)
    board.check_room(3)


def test_jobs_that_will_have_a_slot_do_not_wait(board: Board) -> None:
    for name in ("a", "b"):
        board.check_room(0)
        board.open(name, 20)
    with pytest.raises(Unavailable, match="2 jobs wait"):
        board.check_room(0)


def test_ended_and_cancelled_jobs_make_room(board: Board) -> None:
    jobs = [board.open(name, 20) for name in ("a", "b", "c")]
    with pytest.raises(Unavailable):
        board.check_room(1)
    board.cancel("a")
    board.check_room(1)
    board.close(*jobs[1], Phase.DONE)
    board.check_room(1)


def test_nobody_is_refused_before_denoise_has_told_its_slots(tmp_path: Path) -> None:
    board = Board(tmp_path / "other")
    for name in ("a", "b", "c"):
        board.open(name, 20)
        board.check_room(0)


def test_memory_that_others_hold_is_free_when_they_end(board: Board) -> None:
    board.check_memory(5_000_000_000, 4_000_000_000)  # alone it may take more
    jobs = [board.open(name, 20, held=1_500_000_000) for name in ("a", "b")]
    board.check_memory(1_000_000_000, 4_000_000_000)
    with pytest.raises(Unavailable) as caught:
        board.check_memory(1_000_000_001, 4_000_000_000)
    assert str(caught.value) == (
        "requests under way hold 3 GB of memory; with 1 GB for this one it would be more than "
        "the 4 GB that they may have together; try again later"
    )
    board.close(*jobs[0], Phase.DONE)
    board.check_memory(1_000_000_001, 4_000_000_000)


def test_a_job_that_nobody_may_close_holds_no_memory(board: Board) -> None:
    board.open("a", 20, held=4_000_000_000)
    with pytest.raises(Unavailable, match="requests under way hold"):
        board.check_memory(1, 4_000_000_000)
    board.cancel("a")  # in a queue of Triton's, which may have dropped it
    board.check_memory(1, 4_000_000_000)

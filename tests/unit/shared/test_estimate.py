"""When a job will be done, as the board tells it."""

from __future__ import annotations

from tessera.shared.board import Board
from tessera.shared.rows import Phase
from tests.samples.boards import Clock


def run(board: Board, clock: Clock, job: tuple[int, int], steps: int, step_s: float) -> None:
    """Let a job make steps; the first says nothing of how long one takes."""
    for step in range(1, steps + 1):
        clock.now += step_s
        board.progress(*job, Phase.DENOISING, step)


def test_nothing_is_told_before_something_was_measured(board: Board, clock: Clock) -> None:
    job = board.open("a", 20)
    assert board.status("a").seconds_left is None
    run(board, clock, job, 1, 5.0)
    assert board.status("a").seconds_left is None


def test_steps_that_are_left_take_as_long_as_the_latest(board: Board, clock: Clock) -> None:
    job = board.open("a", 20)
    run(board, clock, job, 10, 2.0)
    assert board.status("a").seconds_left == 20.0
    clock.now += 100
    assert board.status("a").seconds_left == 20.0


def test_what_comes_behind_the_steps_counts(board: Board, clock: Clock) -> None:
    job = board.open("a", 2)
    run(board, clock, job, 2, 1.0)
    board.progress(*job, Phase.DECODING)
    clock.now += 4.0
    board.close(*job, Phase.DONE)
    assert board.status("a").seconds_left is None
    other = board.open("b", 10)
    run(board, clock, other, 5, 1.0)
    assert board.status("b").seconds_left == 5 + 4


def test_who_waits_has_a_place_and_the_wait_for_a_slot(board: Board, clock: Clock) -> None:
    for name, steps in (("short", 2), ("long", 10)):
        run(board, clock, board.open(name, 12), steps, 1.0)
    for name in ("first", "second", "third"):
        board.open(name, 4)
    assert [board.status(n).place for n in ("long", "first", "second", "third")] == [None, 1, 2, 3]
    # slots are free after 2 and 10 seconds
    left = [board.status(n).seconds_left for n in ("short", "long", "first", "second", "third")]
    assert left == [10, 2, 2 + 4, 6 + 4, 10 + 4]
    board.cancel("first")
    assert board.status("first").place is None
    assert [board.status(n).place for n in ("second", "third")] == [1, 2]


def test_a_pause_is_no_step(board: Board, clock: Clock) -> None:
    job = board.open("a", 20)
    run(board, clock, job, 10, 2.0)
    clock.now += 60
    board.pause(*job)
    clock.now += 2
    board.progress(*job, Phase.DENOISING, 11)
    assert board.status("a").seconds_left == 18


def test_who_has_lost_a_slot_waits_for_it_and_others_wait_for_both(
    board: Board, clock: Clock
) -> None:
    """Three have begun on two slots: the last of them goes on when one is free."""
    for name, steps in (("short", 2), ("long", 10), ("paused", 4)):
        run(board, clock, board.open(name, 12), steps, 1.0)
    board.open("new", 4)
    left = [board.status(n).seconds_left for n in ("short", "long", "paused", "new")]
    # slots are free after 2 and 10 seconds, and the first again after 8 more
    assert left == [10, 2, 2 + 8, 10 + 4]


def test_a_free_slot_is_no_wait(board: Board, clock: Clock) -> None:
    run(board, clock, board.open("a", 12), 2, 1.0)
    board.open("b", 4)
    assert board.status("b").seconds_left == 4

"""Jobs that were lost between two models, or with one: nothing stays on the board as running."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.errors import Cancelled, InvalidInput, TimedOut, Unavailable
from tessera.plan import Plan
from tessera.shared.board import Board
from tessera.shared.rows import ROW, Phase, lost
from tests.samples.boards import Clock
from tests.samples.plans import plan as plan_of
from tests.samples.programs import program


def opened(board: Board, name: str, **options: float | int) -> Plan:
    """A job that `encode` has handed on."""
    slot, ticket = board.open(name, 10, **options)  # type: ignore[arg-type]
    board.hand_on(slot, ticket)
    return plan_of(slot=slot, ticket=ticket, job_id=name, **options)


def test_a_deadline_ends_a_job_wherever_it_is(board: Board, clock: Clock) -> None:
    waits, runs = (opened(board, name, deadline=clock.now + 5) for name in ("waits", "runs"))
    board.take(runs, queued=True)
    board.progress(runs.slot, runs.ticket, Phase.DENOISING, 1)
    clock.now += 6
    with pytest.raises(TimedOut, match="the time of job waits was over"):
        board.take(waits)
    with pytest.raises(TimedOut, match="the time of job runs was over after 1 steps"):
        board.check_wanted(runs, " after 1 steps")
    assert board.running() == 0
    assert [board.status(name).phase for name in ("waits", "runs")] == ["failed", "failed"]


def test_a_job_that_render_never_takes_is_lost_when_render_has_room(
    board: Board, clock: Clock
) -> None:
    """As after a direct call of `encode`, or a queue that dropped it."""
    ghost = opened(board, "ghost")
    clock.now += 29
    assert board.status("ghost").phase == "queued"
    clock.now += 2
    assert board.status("ghost").phase == "failed"
    with pytest.raises(Unavailable, match="job ghost is not on the board"):
        board.take(ghost, queued=True)


def test_a_job_may_wait_for_long_as_long_as_render_is_busy(board: Board, clock: Clock) -> None:
    for name in ("a", "b"):
        board.take(opened(board, name), queued=True)
    opened(board, "waits")
    clock.now += 800
    assert board.status("waits").phase == "queued"


def test_a_job_that_younger_ones_overtook_counts_for_nothing(board: Board, clock: Clock) -> None:
    for name in ("a", "b"):
        runs = opened(board, name)
        board.take(runs, queued=True)
        board.progress(runs.slot, runs.ticket, Phase.DENOISING, 1)
    board.hand_on(*board.open("ghost", 10, held=7))
    opened(board, "patient", priority=3)
    board.take(opened(board, "younger"), queued=True)
    clock.now += 29
    assert [name for name, _ in board.queued()] == ["ghost", "younger", "patient"]
    clock.now += 2
    assert [name for name, _ in board.queued()] == ["younger", "patient"]
    assert board.status("patient").place == 2
    assert board.running() == 4
    board.check_memory(1, 7)
    again = opened(board, "ghost")
    assert board.holds(again.slot, again.ticket)
    with pytest.raises(InvalidInput, match="JOB_ID is 'patient'"):
        opened(board, "patient")


def test_a_job_that_younger_ones_overtook_may_come_yet(board: Board, clock: Clock) -> None:
    """Its caller gave Triton another priority than the models."""
    for name in ("a", "b"):
        board.take(opened(board, name), queued=True)
    late = opened(board, "late")
    board.take(opened(board, "younger"), queued=True)
    clock.now += 800
    assert board.status("late").phase == "queued"
    board.take(late, queued=True)
    assert board.running() == 4


def test_a_job_that_waits_is_not_lost_as_long_as_its_process_says_so(
    board: Board, clock: Clock
) -> None:
    """For its turn, for a recording, or for a ControlNet."""
    jobs = [opened(board, name) for name in ("kept", "silent")]
    for job in jobs:
        board.take(job, queued=True)
    for _ in range(3):
        clock.now += 400
        board.keep(jobs[0].slot, jobs[0].ticket)
    assert board.running() == 1
    phases = {name: board.status(name).phase for name in ("kept", "silent")}
    assert phases == {"kept": "queued", "silent": "failed"}
    assert not board.waiting(), "it is not about to arrive at denoise"


def test_edits_that_do_not_queue_overtake_nobody(board: Board, clock: Clock) -> None:
    for name in ("a", "b"):
        board.take(opened(board, name), queued=True)
    opened(board, "waits")
    board.take(opened(board, "edit"))
    clock.now += 31
    assert board.status("waits").phase == "queued"


def test_a_job_ends_with_the_process_that_has_it(board: Board, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tessera.shared.board import Board;"
        "Board(Path(sys.argv[1])).open('a', 1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "board")], check=True)
    assert board.status("a").phase == "failed"


def test_a_job_that_decode_never_takes_is_lost(board: Board, clock: Clock) -> None:
    done = [opened(board, name) for name in ("a", "b")]
    for job in done:
        board.progress(job.slot, job.ticket, Phase.DECODING, 10)
        board.hand_on(job.slot, job.ticket)
    board.take(done[0])
    clock.now += 31
    assert board.status("b").phase == "decoding"  # decode is at another
    board.close(done[0].slot, done[0].ticket, Phase.DONE)
    clock.now += 31
    assert board.status("b").phase == "failed"


def test_a_picture_waits_while_decode_is_at_one_whose_time_is_over(
    board: Board, clock: Clock
) -> None:
    slow, waits = opened(board, "slow", deadline=clock.now + 5), opened(board, "waits")
    for job in (slow, waits):
        board.progress(job.slot, job.ticket, Phase.DECODING, 10)
        board.hand_on(job.slot, job.ticket)
    board.take(slow)
    clock.now += 6
    assert board.running() == 1
    clock.now += 26
    assert [board.status(name).phase for name in ("slow", "waits")] == ["failed", "decoding"]
    board.close(slow.slot, slow.ticket, Phase.DONE)
    clock.now += 31
    assert board.status("waits").phase == "failed"


def test_jobs_wait_while_render_is_at_those_whose_time_is_over(board: Board, clock: Clock) -> None:
    """A tick of `denoise` may take longer than both limits together."""
    late = [opened(board, name, deadline=clock.now + 5) for name in ("a", "b")]
    for job in late:
        board.take(job, queued=True)
        board.progress(job.slot, job.ticket, Phase.DENOISING, 1)
    opened(board, "waits")
    clock.now += 6
    assert board.running() == 1
    clock.now += 26
    assert [board.status(name).phase for name in ("a", "waits")] == ["failed", "queued"]
    for job in late:
        board.hand_on(job.slot, job.ticket)
    clock.now += 31
    assert board.status("waits").phase == "failed"


@pytest.mark.parametrize("phase", [Phase.DENOISING, Phase.DECODING], ids=["render", "decode"])
def test_a_process_that_ends_later_than_its_job_does_not_count(
    board: Board, clock: Clock, phase: Phase
) -> None:
    with program("sleep", "600") as process:
        for name in ("a", "b"):
            job = opened(board, name, deadline=clock.now + 5)
            board.progress(job.slot, job.ticket, phase, 1)
            board._rows[job.slot]["process"] = process.pid
        waits = opened(board, "waits")
        if phase == Phase.DECODING:
            board.progress(waits.slot, waits.ticket, phase, 10)
        clock.now += 31
        assert board.status("a").phase == "failed"
        assert board.running() == 1
    clock.now += 6
    assert board.status("waits").phase == "failed"
    assert not board._rows["process"].any(), "they would seem to be of a later process"


@pytest.mark.parametrize("late", [False, True], ids=["done", "time is over"])
def test_a_model_that_has_just_done_a_job_may_be_about_to_take_the_next(
    board: Board, clock: Clock, late: bool
) -> None:
    """A second or so goes by on a busy machine, and somebody may look at the board just then."""
    deadline = clock.now + 32 if late else 0.0
    jobs = [opened(board, name, deadline=deadline) for name in ("a", "b", "slow")]
    opened(board, "queued")
    waits = opened(board, "waits")
    for job in jobs:
        board.take(job, queued=True)
    for job in (jobs[2], waits):
        board.progress(job.slot, job.ticket, Phase.DECODING, 10)
    for after_s, phases in ((31, ["queued", "decoding"]), (4, ["queued", "decoding"])):
        clock.now += after_s
        assert [board.status(name).phase for name in ("queued", "waits")] == phases
    for job in jobs[:2]:
        board.progress(job.slot, job.ticket, Phase.DECODING, 10)
        board.hand_on(job.slot, job.ticket)
    board.close(jobs[2].slot, jobs[2].ticket, Phase.DONE)
    for after_s in (2, 2):
        clock.now += after_s
        assert [board.status(name).phase for name in ("queued", "waits")] == ["queued", "decoding"]
    clock.now += 2
    assert [board.status(name).phase for name in ("queued", "waits")] == ["failed", "failed"]


def test_a_picture_waits_while_decode_is_at_a_preview(board: Board, clock: Clock) -> None:
    waits = opened(board, "waits")
    board.progress(waits.slot, waits.ticket, Phase.DECODING, 10)
    with board.previewing():
        clock.now += 31
        assert board.status("waits").phase == "decoding"
    for after_s, phase in ((4, "decoding"), (2, "failed")):
        clock.now += after_s
        assert board.status("waits").phase == phase


def test_a_preview_ends_with_its_process(board: Board, clock: Clock) -> None:
    waits = opened(board, "waits")
    board.progress(waits.slot, waits.ticket, Phase.DECODING, 10)
    with program("sleep", "600") as process:
        board._header["previewing"] = process.pid
        clock.now += 31
        assert board.status("waits").phase == "decoding"
    clock.now += 2
    assert board.status("waits").phase == "failed"
    assert board._header["previewing"] == 0, "it would seem to be a later process"


def test_late_progress_does_not_undo_the_end(board: Board, tmp_path: Path) -> None:
    """A process was stopped between its look at the row and what it writes."""
    job = opened(board, "a")
    late = Board(tmp_path / "board")
    board.close(job.slot, job.ticket, Phase.CANCELLED)
    late._rows[job.slot]["phase"] = Phase.DENOISING
    assert board.status("a").phase == "cancelled"
    assert board.running() == 0


def test_a_cancelled_job_is_not_taken(board: Board) -> None:
    job = opened(board, "a")
    board.cancel("a")
    with pytest.raises(Cancelled, match="job a was cancelled"):
        board.take(job)


def test_places_in_the_queue_follow_priorities(board: Board) -> None:
    for name, priority in (("last", 3), ("usual", 2), ("first", 1), ("second", 1)):
        opened(board, name, priority=priority)
    places = {name: board.status(name).place for name in ("first", "second", "usual", "last")}
    assert places == {"first": 1, "second": 2, "usual": 3, "last": 4}
    assert [name for name, _ in board.queued()] == list(places)


def test_a_job_that_is_handed_on_during_the_look_is_not_lost() -> None:
    """Rows are shared memory: a process that has done its part writes 0 into `process`."""

    class Moving(np.ndarray[Any, Any]):
        """A column in which every second look finds 0."""

        looks = 0

        def __getitem__(self, key: Any) -> Any:
            if key == "process":
                Moving.looks += 1
                column = super().__getitem__(key)
                return column if Moving.looks == 1 else np.zeros_like(column)
            return super().__getitem__(key)

    rows = np.zeros(1, ROW).view(Moving)
    rows["ticket"], rows["phase"], rows["process"] = 1, Phase.QUEUED, os.getpid()
    rows["touched"] = 100.0
    Moving.looks = 0
    assert not lost(rows, 101.0, slots=8).any()

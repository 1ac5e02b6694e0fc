"""Which processes have to compute, by the board."""

from __future__ import annotations

import os

import pytest

from tessera.plan import Plan
from tessera.shared.board import Board
from tessera.shared.rows import Phase
from tests.samples.boards import Clock
from tests.samples.plans import plan as plan_of

OWN = os.getpid()
BESIDE = {1: "denoise", 2: "controlnet_edges", 3: "controlnet_depth", 4: "decode", 5: "templates"}


def opened(board: Board, **options: float) -> Plan:
    slot, ticket = board.open("a", 10, **options)  # type: ignore[arg-type]
    return plan_of(slot=slot, ticket=ticket, job_id="a", **options)


@pytest.mark.parametrize("model", ["encode", "decode"])
def test_who_computes_a_job_has_to_work_until_it_has_handed_it_on(board: Board, model: str) -> None:
    running = {**BESIDE, OWN: model}
    assert board.tasks(running) == {}
    job = opened(board)
    assert board.tasks(running) == {OWN: (job.ticket,)}
    board.hand_on(job.slot, job.ticket)
    assert board.tasks(running) == {}
    board.take(job)
    assert board.tasks(running) == {OWN: (job.ticket,)}
    board.close(job.slot, job.ticket, Phase.DONE)
    assert board.tasks(running) == {}


@pytest.mark.parametrize("model", ["render", "edit"])
def test_who_waits_for_denoise_says_so(board: Board, model: str) -> None:
    """Before that it may wait for a recording, or for a ControlNet that is being loaded."""
    running = {**BESIDE, OWN: model}
    job = opened(board)
    board.hand_on(job.slot, job.ticket)
    board.take(job)
    assert board.tasks(running) == {}
    board.ask_denoise(job.slot, job.ticket)
    assert board.tasks(running) == {1: (0,)}
    board.begin_tick()
    board.progress(job.slot, job.ticket, Phase.DENOISING, 1)
    assert board.tasks(running) == {1: (1,)}
    board.hand_on(job.slot, job.ticket)
    assert board.tasks(running) == {}


def test_denoise_that_waits_for_a_controlnet_does_not_have_to(board: Board) -> None:
    running = {**BESIDE, OWN: "render"}
    job = opened(board)
    board.ask_denoise(job.slot, job.ticket)
    board.tell_awaited("edges")
    assert board.tasks(running) == {2: (0,)}
    board.tell_awaited("")
    assert board.tasks(running) == {1: (0,)}


def test_a_deadline_ends_the_job_and_not_the_work(board: Board, clock: Clock) -> None:
    """Until the process itself is done with it."""
    running = {**BESIDE, OWN: "encode"}
    job = opened(board, deadline=clock.now + 5)
    clock.now += 6
    assert board.running() == 0
    assert board.tasks(running) == {OWN: (job.ticket,)}
    board.hand_on(job.slot, job.ticket)
    assert board.tasks(running) == {}


def test_a_later_process_of_the_same_number_has_nothing_to_do(board: Board, clock: Clock) -> None:
    job = opened(board)
    board.hand_on(job.slot, job.ticket)
    dead = 2**22 + 1
    board._rows[job.slot]["process"] = dead
    assert board.tasks({dead: "encode"}) == {dead: (job.ticket,)}
    clock.now += 2
    assert board.running() == 0
    assert board.tasks({dead: "encode"}) == {}

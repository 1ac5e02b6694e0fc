"""Who has the slots, if there are fewer than requests."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tessera.denoise.running import Running, RunningControl
from tessera.denoise.slots import CONTROL, by_tokens, in_turn, work_left
from tessera.plan import ControlUse
from tests.samples.plans import plan, running

LATENTS = 16 * 16
"""Of the samples' plans."""


@dataclass
class Sparse:
    """A sparse state."""

    kinds: tuple[bool, ...]
    active_latents: int = 10

    @property
    def planned(self) -> tuple[bool, ...]:
        return self.kinds


def request(ticket: int, steps: int = 4, began: float = 0.0, **changes: object) -> Running:
    return running(plan(ticket=ticket, steps=steps, started=began, **changes))


def tickets(requests: list[Running]) -> list[int]:
    return [each.plan.ticket for each in requests]


def test_without_a_choice_they_come_by_priority_and_arrival() -> None:
    requests = [request(3), request(1, priority=3), request(2)]
    assert tickets(in_turn(requests, 3, by_tokens, 9.0)) == [2, 3, 1]


def test_priority_comes_before_all() -> None:
    requests = [request(1, steps=1, began=0.0, priority=2), request(2, 50, 9.0, priority=1)]
    assert tickets(in_turn(requests, 1, by_tokens, 9.0)) == [2]


def test_equals_come_by_arrival() -> None:
    requests = [request(2, began=5.0), request(1, began=5.0)]
    assert tickets(in_turn(requests, 1, by_tokens, 5.0)) == [1]


def test_a_short_one_overtakes_a_long_one_that_has_just_begun() -> None:
    long, short = request(1, 50, began=0.0), request(2, 2, began=1.0)
    assert tickets(in_turn([long, short], 1, by_tokens, 1.02)) == [1], "not at once"
    assert tickets(in_turn([long, short], 1, by_tokens, 1.1)) == [2]
    long.step = 49
    assert tickets(in_turn([long, short], 1, by_tokens, 1.1)) == [1], "it is nearly done"


def test_one_that_has_waited_long_gets_its_turn() -> None:
    long = request(1, 50, began=0.0)
    for now in range(1, 200):
        new = request(1 + now, 2, began=now - 0.5)
        if tickets(in_turn([long, new], 1, by_tokens, now)) == [1]:
            break
    assert 0.5 / 2 <= now / 50 <= 0.5 / 2 + 1 / 50


def test_the_batch_keeps_its_order() -> None:
    """By arrival, whatever the ratios are: the side path and CUDA graphs know batches by it."""
    requests = [request(ticket, steps=9 - ticket) for ticket in (1, 2, 3, 4)]
    assert tickets(in_turn(requests, 2, by_tokens, 1.0)) == [3, 4]


def test_work_counts_branches_sizes_sparse_steps_and_controls() -> None:
    alone = request(1, steps=4)
    assert work_left(alone, by_tokens) == 2 * 4 * LATENTS
    assert work_left(request(1, steps=4, guidance=0.0), by_tokens) == 4 * LATENTS
    assert work_left(request(1, steps=4, width=128), by_tokens) == 4 * 4 * LATENTS
    alone.step = 1
    assert work_left(alone, by_tokens) == 2 * 3 * LATENTS
    alone.sparse = Sparse((True, True, True, False))
    assert work_left(alone, by_tokens) == 2 * (LATENTS + 2 * 10)
    controlled = request(1, steps=4)
    image = controlled.latents
    controlled.controls = tuple(
        RunningControl(ControlUse(name, scale, 0.0, 1.0), 1, image)
        for name, scale in (("a", 1.0), ("b", 0.5), ("off", 0.0))
    )
    assert work_left(controlled, by_tokens) == 2 * 4 * LATENTS * (1 + 2 * CONTROL)
    controlled.step = 4
    assert work_left(controlled, by_tokens) > 0


def test_costs_are_asked_for() -> None:
    """Steps of this server, as the chooser of sparse steps has measured them."""

    def cost(kind: str, size: tuple[int, int], tokens: float) -> float:
        assert size == (16, 16)
        return {"dense": 30.0, "sparse": 20.0}[kind]

    edit = request(1, steps=4)
    edit.sparse = Sparse((True, False, False, False))
    assert work_left(edit, cost) == 2 * (3 * 30.0 + 20.0)


@pytest.mark.parametrize("seed", range(3))
def test_nobody_starves_beside_a_stream_of_short_ones(seed: int) -> None:
    """A load of 0.9: one long request of 50 steps, and short ones of 1 to 4 for ever."""
    rng = random.Random(seed)
    long, now, ticket = request(1, 50), 0.0, 1
    here, arrives = [long], 0.0
    while any(each is long for each in here):
        while arrives <= now:
            ticket += 1
            here.append(request(ticket, rng.randint(1, 4), began=arrives))
            arrives += rng.expovariate(0.9 / 2.5)
        (turn,) = in_turn(here, 1, by_tokens, now)
        turn.step += 1
        now += 1.0
        here = [each for each in here if each.step < each.plan.steps]
        assert now < 50 / (1 - 0.9) * 3

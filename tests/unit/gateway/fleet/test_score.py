"""When a request would be done."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_gateway.fleet.load import Cost, Defaults, Lines, Load, Recorded, Running, Waiting
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.score import LONG, Weights, Work, finish, predict, remaining, work

DEFAULTS = Defaults(steps=10, width=64, height=64, guidance=7.5, scheduler="euler", pixels=8)
IDLE = Load("a", slots=2, lines=Lines((0.0, 1.0), (6.0, 1.0)), defaults=DEFAULTS)
DENSE = 2 * 64.0
"""Milliseconds of a guided dense step of 64 tokens."""
RECORDED = Recorded("t", "euler", 10, kept=10)
EDIT = Peek("edit", template="t", mask=0.25, width=64, height=64)
WEIGHTS = Weights(control=1000.0, file=50.0, merge=9.0)


def told(load: Load = IDLE, **changes: object) -> Load:
    return msgspec.structs.replace(load, **changes)


class TestFinish:
    def test_alone(self) -> None:
        assert finish([], [], Work(10, 3.0), slots=1) == pytest.approx(30)

    def test_a_tick_lasts_as_long_as_the_larger_sum(self) -> None:
        """Equation of InstGenIE's Algorithm 2."""
        assert finish([Work(10, 2.0, 9.0)], [], Work(10, 3.0), slots=2) == pytest.approx(90)

    def test_those_who_are_done_no_longer_slow_it_down(self) -> None:
        assert finish([Work(4, 2.0)], [], Work(10, 3.0), slots=2) == pytest.approx(4 * 5 + 6 * 3)

    def test_without_a_slot_it_waits_for_the_first_to_leave(self) -> None:
        running = [Work(4, 2.0), Work(8, 1.0)]
        assert finish(running, [], Work(2, 1.0), slots=2) == pytest.approx(4 * 3 + 2 * 2)

    def test_the_queue_goes_first(self) -> None:
        assert finish([Work(4, 2.0)], [Work(3, 1.0)], Work(2, 1.0), slots=1) == pytest.approx(13)

    def test_who_is_not_ready_lets_others_pass(self) -> None:
        late = Work(3, 1.0, ready=100.0)
        assert finish([], [late], Work(2, 1.0), slots=1) == pytest.approx(2)
        assert finish([], [Work(2, 1.0)], late, slots=1) == pytest.approx(103)

    @given(
        st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 9), st.floats(0, 50)), max_size=9),
        st.integers(1, 4),
        st.integers(1, 30),
    )
    def test_against_ticks_one_by_one(
        self, others: list[tuple[int, float, float]], slots: int, steps: int
    ) -> None:
        """Event by event equals tick by tick, if all are ready."""
        works = [Work(left, compute, load) for left, compute, load in others]
        own = Work(steps, 1.0)
        queue = [(w.left, w) for w in (*works[slots:], own)]
        active = [(w.left, w) for w in works[:slots]]
        now = 0.0
        while queue or any(w is own for _, w in active):
            while queue and len(active) < slots:
                active.append(queue.pop(0))
            now += max(sum(w.compute for _, w in active), sum(w.load for _, w in active))
            active = [(left - 1, w) for left, w in active if left > 1]
        assert finish(works[:slots], works[slots:], own, slots=slots) == pytest.approx(now)


class TestPredict:
    def predicted(self, load: Load, peek: Peek, *ahead: Peek, gone: tuple[str, ...] = ()) -> float:
        return predict(load, ahead, peek, WEIGHTS, gone=gone).total

    def test_a_generation_with_defaults(self) -> None:
        assert self.predicted(IDLE, Peek("generate")) == pytest.approx(10 * DENSE)
        assert self.predicted(told(decode_ms=7.0), Peek("generate")) == pytest.approx(1287)

    @pytest.mark.parametrize(
        ("peek", "steps"),
        [
            (Peek("generate", steps=3), 3.0),
            (Peek("generate", steps=3, guidance=1.0), 1.5),
            (Peek("generate", width=128), 20.0),
            (Peek("generate", strength=0.7), 7.0),
            (Peek("generate", steps=-4, width=0, strength=9.0), 10.0),
        ],
        ids=["steps", "unguided", "wide", "strength", "nonsense"],
    )
    def test_what_a_request_says(self, peek: Peek, steps: float) -> None:
        assert self.predicted(IDLE, peek) == pytest.approx(steps * DENSE)

    def test_an_edit_with_its_recording_in_memory(self) -> None:
        load = told(recordings=(dataclass_replace(RECORDED, host=10),), read_ms=500.0)
        assert self.predicted(load, EDIT) == pytest.approx(DENSE + 9 * 2 * (6 + 16))

    def test_an_edit_with_loras_uses_recordings_too(self) -> None:
        uses = (("night", 1.0),)
        load = told(recordings=(dataclass_replace(RECORDED, host=10),), current=uses)
        peek = dataclasses.replace(EDIT, loras=uses)
        parsed = told(load, parsed=("night",))
        assert self.predicted(parsed, peek) == pytest.approx(self.predicted(load, EDIT))

    def test_an_edit_with_its_recording_on_disk(self) -> None:
        """Reading hides behind computing as far as that lasts."""
        compute = DENSE + 9 * 2 * (6 + 16)
        slow = told(recordings=(RECORDED,), read_ms=500.0)
        assert self.predicted(slow, EDIT) == pytest.approx(9 * 500)
        assert self.predicted(told(slow, read_ms=5.0), EDIT) == pytest.approx(compute)

    def test_an_edit_without_recording_is_dense_or_has_it_made(self) -> None:
        assert self.predicted(IDLE, EDIT) == pytest.approx(10 * DENSE)
        sparse = dataclasses.replace(EDIT, mode="sparse")
        made = 10 * DENSE / 2  # without guidance
        assert self.predicted(IDLE, sparse) == pytest.approx(made + DENSE + 9 * 2 * (6 + 16))
        assert predict(IDLE, (), sparse, WEIGHTS).missing["record"] == pytest.approx(made)

    def test_what_another_request_brings_is_there(self) -> None:
        before = dataclasses.replace(EDIT, mode="sparse", job="x")
        own, missing = work(
            IDLE, dataclasses.replace(EDIT, mode="sparse"), WEIGHTS, before=[before]
        )
        assert not any(missing.values())
        assert own.ready == 0

    def test_controlnets_that_are_not_loaded(self) -> None:
        peek = Peek("generate", controls=("edges", "pose"))
        assert self.predicted(told(controls=("pose",)), peek) == pytest.approx(1280 + 1000)

    def test_loras(self) -> None:
        """Parsed or not, merged or not, in the UNet or not, on the side path."""
        peek = Peek("generate", loras=(("night", 1.0),))
        load = told(refit_ms=30.0)
        parsed = told(load, parsed=("night",))
        assert self.predicted(load, peek) == pytest.approx(1280 + 50 + 30 + 9)
        assert self.predicted(parsed, peek) == pytest.approx(1280 + 30 + 9)
        assert self.predicted(told(parsed, merged=(peek.loras,)), peek) == pytest.approx(1280 + 30)
        assert self.predicted(told(parsed, current=peek.loras), peek) == pytest.approx(1280)
        assert self.predicted(told(parsed, side=True), peek) == pytest.approx(1280)

    def test_running_requests_by_the_steps_that_are_left(self) -> None:
        dense = Running("j", left=4, branches=2, height=8, width=8)
        sparse = Running("j", left=4, sparse=4, branches=2, height=8, width=8, active=16)
        peek = Peek("generate")
        assert self.predicted(told(running=(dense,)), peek) == pytest.approx(1280 + 4 * DENSE)
        assert self.predicted(told(running=(sparse,)), peek) == pytest.approx(1280 + 4 * 44)

    def test_what_this_router_sent_counts_at_once_and_once(self) -> None:
        sent, peek = Peek("generate", job="mine", steps=4), Peek("generate")
        expected = pytest.approx(1280 + 4 * DENSE)
        assert self.predicted(IDLE, peek, sent) == expected
        waiting = told(waiting=(Waiting("mine", 4),))
        assert self.predicted(waiting, peek, sent) == expected
        running = Running("mine", left=4, branches=2, height=8, width=8)
        assert self.predicted(told(running=(running,)), peek, sent) == expected

    def test_what_has_ended_since_does_not_count(self) -> None:
        running = Running("mine", left=4, branches=2, height=8, width=8)
        load = told(running=(running,), waiting=(Waiting("too", 4),))
        assert self.predicted(load, Peek("generate"), gone=("mine", "too")) == pytest.approx(1280)

    def test_corrections_of_the_lines(self) -> None:
        lines = Lines(
            (0.0, 1.0), (6.0, 1.0), (Cost("dense", 8, 8, 24, 1.5), Cost("dense", 8, 8, 9, 7.0))
        )
        load = told(lines=lines)
        assert self.predicted(load, Peek("generate")) == pytest.approx(1.5 * 1280)


def dataclass_replace(recorded: Recorded, **changes: int) -> Recorded:
    return msgspec.structs.replace(recorded, **changes)


@pytest.mark.parametrize("more", [1, 200])
def test_a_long_queue_is_not_looked_at_one_by_one(more: int) -> None:
    """And costs what its requests cost one after the other, up to what the last share."""
    load = Load(slots=4, lines=Lines((5.0, 1.0), (5.0, 1.0)), defaults=Defaults(10, 64, 64))
    ahead = tuple(Peek("generate", job=str(i), steps=5 + i % 11) for i in range(LONG + more))
    asked = Peek("generate")
    own = work(load, asked, Weights())[0]
    waiting = [work(load, each, Weights())[0] for each in ahead]
    exact = finish([], waiting, own, slots=4)
    assert predict(load, ahead, asked, Weights()).total == pytest.approx(exact, rel=0.05)
    one_by_one = sum(each.left * each.compute for each in waiting)
    assert remaining(load, ahead, Weights()) == pytest.approx(one_by_one, rel=0.03)

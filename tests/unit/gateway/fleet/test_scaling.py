"""How many workers are wanted."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_gateway.fleet.scaling import Autoscaling, Decider

FROM_ZERO = Autoscaling(min=0, max=4, target_seconds=10, up_delay=5, down_delay=60)
LOOKS = st.lists(
    st.tuples(st.floats(0.1, 40), st.floats(0, 200), st.booleans()), min_size=1, max_size=60
)


def test_a_step_of_work_and_back() -> None:
    decider = Decider(FROM_ZERO, 1)
    counts = [decider.decide(float(at), [28.0 if 10 <= at < 30 else 2.0]) for at in range(120)]
    assert counts[:15] == [1] * 15
    assert counts[15:89] == [3] * 74  # until only two seconds are left for all of `down_delay`
    assert counts[90:] == [1] * 30


def test_a_short_peak_starts_nothing_and_a_short_pause_stops_nothing() -> None:
    decider = Decider(FROM_ZERO, 2)
    for at in range(300):
        work = 100.0 if at % 10 < 3 else 0.0 if at % 10 < 6 else 15.0
        assert decider.decide(float(at), [work]) == 2


def test_peaks_start_as_many_as_were_wanted_all_the_time() -> None:
    decider = Decider(FROM_ZERO, 1)
    counts = [decider.decide(float(at), [39.0 if at % 2 else 21.0]) for at in range(10)]
    assert counts[-1] == 3


def test_a_first_request_waits_for_no_delay() -> None:
    decider = Decider(FROM_ZERO, 0)
    assert decider.decide(0.0, []) == 0
    assert decider.decide(0.1, [], held=1) == 1
    assert decider.decide(50.0, [0.0]) == 1
    assert decider.decide(111.0, [0.0]) == 0


def test_none_is_left_after_the_last_work() -> None:
    decider = Decider(FROM_ZERO, 1)
    counts = [decider.decide(float(at), [0.01 if at < 5 else 0.0]) for at in range(100)]
    assert counts.index(0) == 65


@given(LOOKS, st.integers(0, 9))
def test_what_always_holds(looks: list[tuple[float, float, bool]], first: int) -> None:
    settings = FROM_ZERO
    decider = Decider(settings, first)
    now, since = 0.0, None
    history: list[tuple[float, int]] = []
    for pause, work, held in looks:
        now += pause
        since = now if since is None else since
        wanted = min(settings.max, max(math.ceil(work / 10), int(held)))
        history.append((now, wanted))
        before, count = decider.count, decider.decide(now, [work / 2, work / 2], held=int(held))
        assert settings.min <= count <= settings.max
        assert count or not held
        if count > max(before, int(held)):  # all were above that in `up_delay`
            assert all(w >= count for at, w in history if at >= now - settings.up_delay)
        if count < before:
            assert now - since >= settings.down_delay
            assert all(w <= count for at, w in history if at >= now - settings.down_delay)


@given(st.floats(0, 100), st.integers(0, 4))
def test_steady_work_gets_what_it_needs(work: float, first: int) -> None:
    decider = Decider(FROM_ZERO, first)
    for at in range(100):
        decider.decide(float(at), [work])
    assert decider.count == min(4, math.ceil(work / 10))


@pytest.mark.parametrize("count", [0, 2, 9])
def test_a_fixed_number(count: int) -> None:
    decider = Decider(Autoscaling(min=2, max=2), count)
    assert {decider.decide(float(at), [1e6 * (at % 2)]) for at in range(500)} == {2}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"min": -1}, "min is -1; accepted: 0 and above"),
        ({"min": 0, "max": 0}, "max is 0; accepted: 1 and above, and not below min"),
        ({"min": 3, "max": 2}, "max is 2; accepted: 1 and above, and not below min"),
        ({"target_seconds": 0.0}, "target_seconds is 0; accepted: above 0"),
        ({"up_delay": -0.5}, "up_delay is -0.5; accepted: 0 and above"),
        ({"down_delay": -1.0}, "down_delay is -1; accepted: 0 and above"),
        ({"hold_seconds": 0.0}, "hold_seconds is 0; accepted: above 0"),
        ({"hold_requests": 0}, "hold_requests is 0; accepted: 1 and above"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_is_not_accepted(change: dict[str, float], sentence: str) -> None:
    assert msgspec.structs.replace(FROM_ZERO, **change).fault() == sentence
    assert FROM_ZERO.fault() is None

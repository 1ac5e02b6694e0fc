"""Orders of requests, simulated."""

from __future__ import annotations

import pytest

from bench.order_sim import DENSE_S, FIXED_S, SIDES, SPARSE_S, figures, jobs_of, static, step_s
from bench.trace import Asked
from tessera.denoise.slots import CONTROL

LONG, SHORT = Asked(0.0, 30, 1), Asked(0.001, 2, 2)


def latencies(side: str, *requests: Asked) -> list[float]:
    return SIDES[side](jobs_of(requests, 0.5))


def test_steps_take_what_they_take() -> None:
    plain, edit, controlled = jobs_of(
        [LONG, Asked(1.0, 8, 1, template=0, mask=0.1), Asked(2.0, 8, 1, controls=(0, 1))], 0.5
    )
    assert step_s(plain) == DENSE_S
    assert step_s(edit) == SPARSE_S
    assert step_s(controlled) == DENSE_S * (1 + 2 * CONTROL)


@pytest.mark.parametrize("side", SIDES)
def test_alone_all_sides_are_the_same(side: str) -> None:
    assert latencies(side, LONG) == pytest.approx([30 * DENSE_S + FIXED_S])


def test_a_short_one_overtakes_only_by_response_ratio() -> None:
    of = {name: latencies(name, LONG, SHORT) for name in SIDES}
    assert of["response ratio, 1 slot"][1] < 10 * DENSE_S
    assert of["by arrival, 1 slot"][1] > 30 * DENSE_S
    assert of["by arrival, 2 slots"][1] == pytest.approx(4 * DENSE_S + FIXED_S, abs=2 * DENSE_S)
    assert of["static batches of 8"][1] > 30 * DENSE_S


def test_work_is_the_same_for_all() -> None:
    """The last of them ends when all work is done."""
    for name in SIDES:
        jobs = jobs_of([LONG, SHORT], 0.5)
        SIDES[name](jobs)
        assert max(job.done for job in jobs) == pytest.approx(32 * DENSE_S + 2 * FIXED_S), name


def test_a_static_batch_is_answered_together() -> None:
    jobs = jobs_of([LONG, *(Asked(0.01 * n, n, n) for n in (3, 4, 5))], 0.5)
    static(2, jobs)
    assert jobs[1].done == jobs[2].done < jobs[3].done


def test_figures_are_of_all_latencies() -> None:
    found = figures([1.0] * 90 + [11.0] * 10)
    assert (found["p50"], found["p95"], found["mean"]) == (1.0, 11.0, 2.0)

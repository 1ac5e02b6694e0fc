"""Sides in turns: who begins, when servers are quiet, and figures of rounds."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from bench import turns
from bench.replay import Outcome
from bench.server import Server
from bench.trace import PROMPTS, Asked
from bench.turns import QUIET_S, Quiet
from tessera.contract import Info
from tests.fakes import triton_python_backend_utils as pb_utils

EDIT = Asked(0.0, 8, 1, template=0, mask=0.1)


def info(**values: Any) -> Info:
    known = {"job_id": "j", "seed": 1, "steps": 8, "width": 128, "height": 128}
    known |= {"scheduler": "ddim", "encode_ms": 1.0, "decode_ms": 1.0, "total_ms": 2.0}
    return Info(**(known | values))  # type: ignore[arg-type]


def test_who_begins_changes() -> None:
    orders = [turns.in_turn("abc", number) for number in range(4)]
    assert ["".join(order) for order in orders] == ["abc", "bca", "cab", "abc"]


def test_a_capacity_is_that_of_the_second_time_and_fresh_prompts_are_others() -> None:
    requests = [Asked(1.0, 8, 1, prompt=0), Asked(2.0, 8, 2, prompt=PROMPTS)]
    sent: list[Asked] = []
    assert turns.capacity(requests, sent.append) > 0
    assert [asked.at for asked in sent] == [0.0] * 4
    assert sorted(asked.prompt for asked in sent)[:2] == [0, 0]
    assert len({asked.prompt for asked in sent}) == 3


class Clock:
    """Takes no time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("busy_until", "given_up"), [(5.0, 0), (1e9, 1)], ids=["quiet", "never"])
def test_a_turn_waits_until_all_are_quiet(
    busy_until: float, given_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    used = {"idle": lambda: 0.01 * clock.now, "busy": lambda: min(clock.now, busy_until)}
    monkeypatch.setattr(turns, "cpu_seconds", lambda server: used[server]())
    quiet = Quiet({name: name for name in used})  # type: ignore[misc]
    quiet.wait()
    assert quiet.given_up == given_up
    assert (clock.now > 90) == bool(given_up)
    assert clock.now > 5 + QUIET_S
    assert quiet.cores["idle"] == [pytest.approx(0.01)]
    assert quiet.cores["busy"] == [1.0 if given_up else 0.0]


def test_a_server_that_begins_to_record_later_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `templates` does with what was wanted once: five idle seconds, and one between two."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    from tessera.triton import templates

    clock, recordings, each_s = Clock(), 3, 1.5
    monkeypatch.setattr(turns, "time", clock)

    def used(_: object) -> float:
        left, spent = clock.now - templates.ONCE_IDLE_S, 0.0
        for _number in range(recordings):
            spent += min(max(left, 0.0), each_s)
            left -= each_s + templates.IDLE_S
        return spent

    monkeypatch.setattr(turns, "cpu_seconds", used)
    quiet = Quiet({"one": "one"})  # type: ignore[dict-item]
    quiet.wait()
    last = templates.ONCE_IDLE_S + recordings * (each_s + templates.IDLE_S) - templates.IDLE_S
    assert clock.now > last
    assert quiet.given_up == 0


def test_processor_time_is_that_of_the_process() -> None:
    server = Server(SimpleNamespace(pid=os.getpid()), 0, 0, 0, None)  # type: ignore[arg-type]
    before, end = turns.cpu_seconds(server), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert turns.cpu_seconds(server) - before >= 0.2  # it is counted in hundredths


def test_figures_are_of_all_requests_and_speeds_of_rounds() -> None:
    slow = [Outcome(Asked(0.0, 8, 1), 4.0), Outcome(Asked(0.0, 8, 1), 2.0)]
    fast = [Outcome(Asked(0.0, 8, 1), 1.0)]
    found = turns.figures([slow, fast], deadline=2.0)
    assert found["requests"] == 3
    assert found["latency_s"]["p50"] == 2.0
    assert found["good"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["pictures_per_s"] == 0.75  # between 0.5 and 1
    assert found["p95_of_rounds"] == [4.0, 1.0]


def test_kinds() -> None:
    given = {
        "plain": Asked(0.0, 8, 1),
        "LoRA": Asked(0.0, 8, 1, loras=(0,)),
        "ControlNet": Asked(0.0, 8, 1, controls=(0,)),
        "LoRA and ControlNet": Asked(0.0, 8, 1, loras=(0,), controls=(1,)),
        "edit": EDIT,
    }
    rounds = [[Outcome(asked, 2.0) for asked in given.values()], [Outcome(EDIT, 3.0)]]
    found = turns.kinds(rounds)
    assert {kind: of["requests"] for kind, of in found.items()} == dict.fromkeys(given, 1) | {
        "edit": 2
    }
    assert found["edit"]["p95_of_rounds"] == [2.0, 3.0]
    assert found["plain"]["p95_of_rounds"] == [2.0, None]


def test_sparse_steps_are_those_of_edits() -> None:
    rounds = [
        [Outcome(EDIT, 1.0, info(ticks=8, sparse_ticks=6, recording="own"))],
        [Outcome(EDIT, 1.0, info(ticks=8)), Outcome(Asked(0.0, 8, 1), 1.0, info(ticks=80))],
    ]
    assert turns.edits(rounds) == {
        "sparse_steps": 0.375,
        "recordings": {"own": 1, "none": 1},
    }
    assert turns.edits([[Outcome(EDIT, 1.0)]]) is None

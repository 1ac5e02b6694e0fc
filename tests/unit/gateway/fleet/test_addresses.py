"""Where the workers of a fleet are."""

from __future__ import annotations

import time

import pytest

from tessera_gateway.fleet.addresses import FORGOTTEN_S, Addresses
from tessera_gateway.fleet.settings import Server

A, B = Server("a:1", "a:2"), Server("b:1", "b:2")


def test_who_says_nothing_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    known = Addresses()
    known.say(0, A)
    now += FORGOTTEN_S / 2
    known.say(1, B)
    assert known.servers() == {0: A, 1: B}
    now += FORGOTTEN_S / 2
    assert known.servers() == {1: B}


def test_a_worker_takes_the_place_of_an_earlier_one_which_may_leave_later() -> None:
    known = Addresses()
    known.say(0, A)
    known.say(0, B)
    known.leave(0, A)
    assert known.servers() == {0: B}
    known.leave(0, B)
    known.leave(7, B)
    assert known.servers() == {}

"""Processes of models that end: noticed at once, or at the next look."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tessera.serve.ends import Ends


@pytest.fixture
def selector() -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as opened:
        yield opened


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process


def test_an_end_is_noticed_at_once(
    selector: selectors.BaseSelector, child: subprocess.Popen[bytes]
) -> None:
    ends = Ends()
    ends.look(selector, {child.pid: "denoise", os.getpid(): "decode"})
    assert not ends.suspects
    child.kill()
    ((key, _),) = selector.select(60)
    ends.note(selector, key.data)
    assert ends.suspects == {"denoise"}
    ends.note(selector, key.data)  # it is told once, and not watched any more
    assert len(selector.get_map()) == 1


def test_one_that_ended_before_it_was_watched_is_missed(selector: selectors.BaseSelector) -> None:
    """While the server started, its processes were counted only."""
    ends, current = Ends(), {os.getpid(): "edit"}
    ends.count({1: "edit"} | current)
    ends.look(selector, current)
    assert ends.suspects == {"edit"}
    assert not ends.complete("edit", current)
    assert ends.complete("edit", {1: "edit"} | current)


def test_one_that_ends_between_the_list_and_the_watch(
    selector: selectors.BaseSelector, child: subprocess.Popen[bytes]
) -> None:
    child.kill()
    child.wait()
    ends = Ends()
    ends.look(selector, {child.pid: "denoise"})
    assert not ends.suspects
    ends.look(selector, {})
    assert ends.suspects == {"denoise"}


def test_nothing_stays_open_behind_a_server(selector: selectors.BaseSelector) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before, ends = opened(), Ends()
    ends.look(selector, {os.getpid(): "edit", os.getppid(): "denoise"})
    assert opened() == before + 2
    ends.close()
    assert opened() == before


def test_what_is_forgotten_is_counted_anew(selector: selectors.BaseSelector) -> None:
    ends, current = Ends(), {os.getpid(): "edit"}
    ends.look(selector, {1: "edit"} | current)
    assert sorted(ends.leave(selector, "edit")) == [1, os.getpid()]
    assert not selector.get_map()
    ends.look(selector, {})
    assert ends.suspects == {"edit"}
    ends.forget("edit")
    ends.look(selector, {})
    assert not ends.suspects
    ends.look(selector, current)
    assert ends.complete("edit", current)
    assert not ends.suspects
    ends.leave(selector, "edit")

"""Processes that tests start."""

from __future__ import annotations

import sys

import pytest

from tests.samples.programs import marked, program
from tests.samples.waiting import comes

PARENT = "import subprocess, sys; subprocess.run(['sleep', '600'])"


def test_what_a_program_has_started_is_found_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("STARTED_BY", request.node.name)
    mark = f"STARTED_BY={request.node.name}"
    with program(sys.executable, "-c", PARENT) as parent:
        comes(lambda: any("sleep 600" in told for told in marked(mark).values()))
        found = marked(mark)
        assert parent.pid in found
        assert len(found) == 2
        assert all(request.node.name in told for told in found.values())
    comes(lambda: not marked(mark))

"""Paths with brackets, colons and emoji codes come back as they were typed, from every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.samples.waiting import PATIENCE_S

PROGRAMS = Path(sys.executable).parent
NAME = "[/a]:bread:[red]x"
COMMANDS = {
    "tessera": ["edit", f"{NAME}.png", "a", "--rect", "0,0,8,8", "--url", "http://localhost:1"],
    "tessera-build": ["bundle", f"./{NAME}", "-o", "out"],
    "tessera-serve": [f"./{NAME}"],
    "tessera-gateway": ["--keys", NAME],
    "tessera-fleet": [f"{NAME}.yaml"],
    "tessera-picker": [f"{NAME}.yaml"],
}


@pytest.mark.parametrize("program", COMMANDS)
def test_names_are_printed_as_they_were_typed(program: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [PROGRAMS / program, *COMMANDS[program]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode not in (0, -6), done.stdout
    assert NAME in done.stdout + done.stderr
    assert "Traceback" not in done.stderr

"""The command `tessera-gateway`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

from typer.testing import CliRunner

from tessera_gateway.cli import app
from tessera_gateway.keys import Keyring
from tests.samples.waiting import PATIENCE_S


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, behind some code."""
    program = f"{code}\nfrom tessera_gateway.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ | {"COLUMNS": "200"},
    )


def test_packages_that_are_missing_are_named() -> None:
    done = run(code="import sys; sys.modules['uvicorn'] = None")
    assert done.returncode == 1
    assert (
        'uvicorn is not installed; pip install ".[gateway]" in a checkout of Tessera' in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(f"--port={port}")
    assert done.returncode == 1
    assert f"--port {port} cannot be used: Address already in use" in done.stderr


def test_bad_values_are_named(tmp_path: Path) -> None:
    done = run(f"--keys={tmp_path / 'none.toml'}")
    assert (done.returncode, "none.toml" in done.stderr) == (1, True)
    done = run("--triton=ftp://x")
    assert done.returncode == 1
    assert "accepted: http[s]://host[:port][/prefix] or grpc[s]://host[:port]" in done.stderr


def test_a_made_key_fits_its_file(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["make-key", "alice"])
    assert made.exit_code == 0
    assert tomllib.loads(made.stdout)["keys"][0]["name"] == "alice"
    file = tmp_path / "keys.toml"
    file.write_text(made.stdout)
    token = made.stderr.split(": ")[1].strip()
    found = Keyring(file).find(token)
    assert found
    assert found.name == "alice"

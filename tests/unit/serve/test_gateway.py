"""The gateway beside a server, as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tessera.errors import TesseraError
from tessera.serve.gateway import GatewayOptions, GatewayProcess, check_gateway, command
from tessera.serve.tritonserver import Ports
from tests.samples.waiting import PATIENCE_S, comes


def test_missing_packages_are_named() -> None:
    check_gateway()
    with pytest.raises(TesseraError, match=r"not installed: no_such_package; pip install"):
        check_gateway(["uvicorn", "no_such_package"])


def test_the_command_reaches_the_server() -> None:
    line = command(GatewayOptions("0.0.0.0", 80), Ports(), "::1")
    assert line[1:] == [
        "-m",
        "tessera_gateway",
        "--triton=grpc://[::1]:8001",
        "--kserve=http://[::1]:8000",
        "--host=0.0.0.0",
        "--port=80",
    ]


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(600)
"""
PROGRAM = f"""
import sys, time
from tessera.serve.gateway import GatewayProcess
process = GatewayProcess([sys.executable, "-c", {STUBBORN!r}], print)
process.start()
time.sleep(600)
"""


def test_it_is_killed_with_a_program_that_is_killed() -> None:
    """It might take its time for SIGTERM, and keep its port meanwhile."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as started:
        assert started.stdout
        started.stdout.readline()
        (child,) = psutil.Process(started.pid).children()
        started.kill()
        started.wait(PATIENCE_S)
        _, alive = psutil.wait_procs([child], timeout=PATIENCE_S)
        for each in alive:
            each.kill()
        assert not alive


def test_one_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    program = tmp_path / "gateway"
    process = GatewayProcess([str(program)], said.append)
    process.start()
    comes(lambda: len(said) > 0)
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 600\n")
    program.chmod(0o755)
    comes(lambda: (tmp_path / "started").exists())
    process.stop()
    assert "the gateway could not be started ([Errno 2] No such file" in said[0]
    assert said[0].endswith("starting it again in 0 s")


def test_it_is_started_again_until_it_is_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    marks = tmp_path / "starts"
    code = f"open({str(marks)!r}, 'a').write('x'); import time; time.sleep(0 if {{}} else 60)"
    once = code.format(f"len(open({str(marks)!r}).read()) < 2")
    process = GatewayProcess([sys.executable, "-c", once], said.append)
    process.start()
    comes(lambda: marks.exists() and len(marks.read_text()) == 2)
    process.stop()
    assert said == ["the gateway has ended (0); starting it again in 0 s"]
    assert len(marks.read_text()) == 2

"""The gateway beside a server, as a process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tessera.errors import TesseraError
from tessera.serve.gateway import GatewayOptions, GatewayProcess, check_gateway, command
from tessera.serve.tritonserver import Ports
from tests.samples.waiting import comes


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

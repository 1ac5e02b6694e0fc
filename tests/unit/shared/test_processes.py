"""Processes, by what the kernel says of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tessera.serve.idle import is_stopped
from tessera.shared.processes import identity, lives, model_processes
from tests.samples.programs import program


def test_a_name_may_be_any_bytes(tmp_path: Path) -> None:
    """A long name is cut where it may be in the middle of a letter."""
    sleep = shutil.which("sleep")
    assert sleep
    for name in (b"\xff) Z 1", "ежедневный-отчёт".encode()):
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        shutil.copy(sleep, path)
        with program(path, "600") as process:
            assert lives(identity(process.pid))
            assert not is_stopped(process.pid)
            assert model_processes(os.getpid()) == {}


def test_processes_of_models_are_found_by_their_command(tmp_path: Path) -> None:
    script = tmp_path / "some_model" / "1" / "model.py"
    script.parent.mkdir(parents=True)
    script.write_text("import time; time.sleep(600)")
    stub = tmp_path / "triton_python_backend_stub"
    stub.symlink_to(os.path.realpath("/proc/self/exe"))
    with program(str(stub), str(script)) as process:
        assert model_processes(os.getpid()) == {process.pid: "some_model"}

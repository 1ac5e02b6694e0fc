"""Signals, and what is left when a server ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tessera.serve import supervisor as module
from tessera.serve.idle import Work, work_of
from tessera.serve.log import whatever_happens
from tessera.serve.repository import Repository
from tessera.serve.starts import Starts
from tessera.serve.supervisor import Supervisor
from tests.samples.waiting import PATIENCE_S, comes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As they were, behind a test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def supervisor(*line: str) -> Supervisor:
    return Supervisor(line, os.environ, Repository("http://127.0.0.1:1"), print)


def test_signals_are_for_one_that_could_not_be_started() -> None:
    made = supervisor("/no/such/program")
    with pytest.raises(OSError, match="No such file"):
        made.start()
    os.kill(os.getpid(), signal.SIGTERM)
    assert made.interrupted
    made.stop()


def test_a_signal_in_the_moment_of_the_start_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = supervisor("sleep", "600"), subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        if arguments[0] == ["sleep", "600"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    made.start()
    assert not made.wait_ready(PATIENCE_S)
    comes(lambda: made._exit_code() == -signal.SIGKILL)
    made.stop()
    os.kill(os.getpid(), signal.SIGTERM)  # there is nothing to kill any more
    assert made.interrupted


def test_nohup_holds() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    made = supervisor("sleep", "600")
    made.start()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    made.stop()


def test_models_of_a_server_that_has_ended_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are its children no longer, so nobody finds them by it."""
    script = tmp_path / "some_model" / "1" / "model.py"
    script.parent.mkdir(parents=True)
    script.write_text("import time; time.sleep(600)")
    stub = tmp_path / "triton_python_backend_stub"
    stub.symlink_to(os.path.realpath(sys.executable))
    server = f"import subprocess, time; subprocess.Popen([{str(stub)!r}, {str(script)!r}]).wait()"
    made = supervisor(sys.executable, "-c", server)
    made.start()
    comes(lambda: bool(made._running()))
    (child,) = made._running()
    psutil.Process(made._pid).kill()
    comes(lambda: made._exit_code() is not None)
    assert made._running() == {}
    assert psutil.pid_exists(child)
    lives = iter([True, True, False])
    monkeypatch.setattr(module, "lives", lambda each: each.startswith(f"{child}:") and next(lives))
    made.stop()
    assert list(lives) == []
    comes(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(1)])
def test_lines_that_cannot_be_written_are_lost(error: BaseException) -> None:
    tried: list[str] = []

    def full(text: str) -> None:
        tried.append(text)
        raise error

    say = whatever_happens(full)
    say("a line")
    say("another")
    assert tried == ["a line", "another"]


def test_a_start_is_looked_at_once_a_second_only() -> None:
    """To read what all processes do takes as long as some of them need to start."""
    looks: list[int] = []

    def work(process: int) -> Work | None:
        looks.append(process)
        return work_of(process)

    told: list[str] = []
    made = supervisor("sleep", "600")
    made.say, made.starts = told.append, Starts(print, limit=0.5, work=work)
    made.start()
    assert not made.wait_ready(PATIENCE_S)
    assert told == ["nothing has happened for 0 s"]  # 0.5, rounded
    assert looks == [made._pid] * 2
    made.stop()

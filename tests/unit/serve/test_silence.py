"""A tritonserver that hangs is ended; one that is slow is not."""

from __future__ import annotations

import selectors
import signal
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.serve import silence as module
from tessera.serve.idle import Work
from tessera.serve.repository import Repository
from tessera.serve.silence import Silence
from tessera.serve.supervisor import Supervisor
from tests.samples.programs import DOING, over_time, program
from tests.samples.waiting import PATIENCE_S

LIMIT_S = 60.0
SERVER, MODEL = 1, 2
SENTENCE = "tritonserver has neither answered nor done anything for 60 s"


class Looks:
    """Looks at a server, half a second apart, whose answers take a number of looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late: int) -> None:
        self.now, self.said = 0.0, list[str]()
        self._late, self._coming = late, list[tuple[float, Callable[[], None]]]()
        monkeypatch.setattr(module, "threading", SimpleNamespace(Thread=self._thread))

    def _thread(self, *, target: Callable[..., None], args: Any, daemon: bool) -> Any:
        assert daemon
        at = self.now + self._late / 2
        return SimpleNamespace(start=lambda: self._coming.append((at, lambda: target(*args))))

    def hangs(self, looks: int, work: Callable[[int], Work], *, answers: bool) -> int:
        """How often the server was found to hang."""
        silence, found = Silence(self.said.append, LIMIT_S, work, work, lambda: self.now), 0
        for _ in range(looks):
            found += silence.hangs(SERVER, [MODEL], lambda seconds: answers)
            self.pass_time()
        return found

    def pass_time(self) -> None:
        """Half a second, and answers that come meanwhile."""
        self.now += 0.5
        due = [ask for at, ask in self._coming if at <= self.now]
        self._coming = [(at, ask) for at, ask in self._coming if at > self.now]
        for ask in due:
            ask()


def nothing(at: float) -> tuple[float, int]:
    return 0.0, 0


def test_one_that_neither_answers_nor_does_anything_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, work = Looks(monkeypatch, late=0), over_time(nothing, SERVER)
    assert looks.hangs(121, work, answers=False) == 0
    looks = Looks(monkeypatch, late=0)
    assert looks.hangs(300, over_time(nothing, SERVER), answers=False) == 2
    assert looks.said == [SENTENCE] * 2, "it says so again if that one does not end"


@pytest.mark.parametrize("late", [0, 1, 60, 110])
def test_an_idle_one_that_answers_stays_however_late(
    monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    """It has until the limit, and further questions are asked meanwhile."""
    looks = Looks(monkeypatch, late)
    assert looks.hangs(600, over_time(nothing, SERVER), answers=True) == 0


@pytest.mark.parametrize("did", DOING.values(), ids=DOING.keys())
@pytest.mark.parametrize("idle", [SERVER, MODEL])
def test_one_that_does_not_answer_and_does_something_stays(
    monkeypatch: pytest.MonkeyPatch, did: Callable[[float], tuple[float, int]], idle: int
) -> None:
    """It may be the server itself, or any process of its models."""
    looks = Looks(monkeypatch, late=0)
    assert looks.hangs(600, over_time(did, idle), answers=False) == 0


def test_the_supervisor_ends_it() -> None:
    with program("sleep", "600") as process:
        silent = SimpleNamespace(owing=True, hangs=lambda pid, *_: pid == process.pid)
        supervisor = Supervisor([], {}, Repository("http://127.0.0.1:1"), print, silence=silent)  # type: ignore[arg-type]
        supervisor._process = process
        with selectors.DefaultSelector() as selector:
            supervisor._rescan(selector)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL


def test_what_owes_answers_is_asked_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question would hold up the looks at all other processes."""
    monkeypatch.setattr(Repository, "state", lambda self, model: "READY")
    work = over_time(nothing, SERVER)
    silence = Silence(print, LIMIT_S, work, work)
    supervisor = Supervisor([], {}, Repository("http://127.0.0.1:1"), print, silence=silence)
    owed = [silence.owing, supervisor._state("denoise")]
    looks = Looks(monkeypatch, late=30)
    silence.clock = lambda: looks.now
    for _ in range(60):
        silence.hangs(SERVER, [], lambda seconds: True)
        looks.pass_time()
        owed.append(silence.owing)
        assert supervisor._state("denoise") == (None if silence.owing else "READY")
    assert owed[:2] == [False, "READY"]
    assert owed[12:30] == [True] * 18, "from the second question to the first answer"
    assert not owed[32]


def test_processes_that_are_stopped_do_nothing() -> None:
    """So a stopped tritonserver is found, whatever it did before."""
    said: list[str] = []
    with subprocess.Popen(["sleep", "600"]) as process:
        process.send_signal(signal.SIGSTOP)
        silence = Silence(said.append, 0.2)
        while not silence.hangs(process.pid, [process.pid], lambda seconds: False):
            pass
        process.kill()
    assert said == ["tritonserver has neither answered nor done anything for 0 s"]

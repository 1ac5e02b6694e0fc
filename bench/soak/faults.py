"""What is done to a server during a soak."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.server import ALL_MODELS, Server
from tessera.shared.processes import identity, model_processes

STALL_S = 20.0
"""`--stall-seconds` of the server."""
_STOPPED_S = 3.0
_FULL_S = 8.0
_HEALS_WITHIN_S = 180.0


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at: when it was done, as `time.monotonic` has it.
        what: in words.
        seconds: until every model was ready again.
    """

    at: float
    what: str
    seconds: float


class Faults:
    """Does them, one at a time.

    Args:
        server: a running server.
        templates: its folder of templates.
        seed: of the choices.
        full: whether that folder is a file system of its own, small enough to be filled.

    Attributes:
        kills: how often tritonserver was killed.
    """

    def __init__(self, server: Server, templates: Path, seed: int, full: bool) -> None:
        self._server, self._templates = server, templates
        self._rng = random.Random(f"faults {seed}")
        self._kinds: list[Callable[[], str]] = [
            self._kill_model,
            self._kill_model,
            self._kill_server,
            self._stop_model,
            self._hang_model,
            self._damage,
        ]
        if full:
            self._kinds.append(self._fill)
        self._left: list[Callable[[], str]] = []
        self._replaced: set[str] = set()
        self.kills = 0

    def next(self) -> Fault:
        """Do one, and wait until the server is whole. Every kind comes before one comes again.

        Raises:
            RuntimeError: the server does not come back.
        """
        if not self._left:
            self._left = self._rng.sample(self._kinds, len(self._kinds))
        at = time.monotonic()
        what = self._left.pop()()
        self._server.wait_ready(_HEALS_WITHIN_S, (*ALL_MODELS, "serving"))
        return Fault(at, what, time.monotonic() - at)

    def _triton(self) -> psutil.Process:
        """Of tritonserver. It may just be starting again: it ends by itself at times, when a
        process of a model was killed under it.
        """
        family = psutil.Process(self._server.process.pid)
        found: list[psutil.Process] = []

        def some() -> bool:  # other children are there for moments: one that is asked for its flags
            found[:] = [each for each in family.children() if model_processes(each.pid)]
            return bool(found)

        self._server.wait_until(some, _HEALS_WITHIN_S)
        return found[0]

    def _model(self) -> tuple[psutil.Process, int, str]:
        """tritonserver, one of its processes that works, and its model.

        Processes that others have replaced do not work: they only wait for their last jobs, and
        nobody misses them. Nor does one that is just being loaded: who asked for it is told, and
        nothing has to come back.
        """
        found: list[tuple[int, str]] = []
        triton = self._triton()

        def some() -> bool:
            nonlocal triton
            triton = self._triton()
            working = {
                (p, m)
                for p, m in model_processes(triton.pid).items()
                if identity(p) not in self._replaced and self._server.ready(m)
            }
            found[:] = sorted(working)
            return bool(found)

        self._server.wait_until(some, _HEALS_WITHIN_S)
        return triton, *self._rng.choice(found)

    def _kill_model(self) -> str:
        return f"killed a process of {self._replace(signal.SIGKILL)}"

    def _hang_model(self) -> str:
        """The server has to find out by itself."""
        return f"stopped {self._replace(signal.SIGSTOP)} until it was ended"

    def _replace(self, number: int) -> str:
        """Send a signal to a process; the model, once it has been loaded again for that."""
        triton, process, model = self._model()
        processes = model_processes(triton.pid)
        self._replaced |= {identity(p) for p, m in processes.items() if m == model}
        sentence = f"model {model} is back after"
        before = self._server.log.read_text().count(sentence)
        _signal(process, number)
        self._server.wait_until(
            # A tritonserver that ends by itself is started again with all models. It may have
            # ended before the signal: its processes outlive it by moments.
            lambda: (
                self._server.log.read_text().count(sentence) > before or not triton.is_running()
            ),
            STALL_S + _HEALS_WITHIN_S,
        )
        return model

    def _kill_server(self) -> str:
        triton = self._triton()
        triton.kill()
        self.kills += 1
        psutil.wait_procs([triton], timeout=_HEALS_WITHIN_S)
        self._server.wait_until(lambda: not self._server.ready(), _HEALS_WITHIN_S)
        return "killed tritonserver"

    def _stop_model(self) -> str:
        _, process, model = self._model()
        _signal(process, signal.SIGSTOP)
        time.sleep(_STOPPED_S)
        _signal(process, signal.SIGCONT)
        return f"stopped {model} for {_STOPPED_S:g} s"

    def _damage(self) -> str:
        files = sorted(self._templates.glob("recordings/*/*.safetensors"))
        if not files:
            return "found no recording to damage"
        chosen = self._rng.choice(files)
        middle = chosen.stat().st_size // 2
        with chosen.open("r+b") as file:
            file.seek(middle)
            file.write(bytes(64))
        return "damaged a recording"

    def _fill(self) -> str:
        filler = self._templates / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
            except OSError:
                pass
        time.sleep(_FULL_S)
        filler.unlink()
        return f"filled the disk of templates for {_FULL_S:g} s"


def _signal(process: int, number: int) -> None:
    """Send a signal, unless the process has just ended with its tritonserver."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def mount(folder: Path, megabytes: int) -> bool:
    """Make a folder a file system of its own, in memory. Whether that was allowed: it takes root.

    Args:
        folder: exists, and is empty.
        megabytes: its size.
    """
    line = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tessera-soak", str(folder)]
    try:
        return subprocess.run(line, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def unmount(folder: Path) -> None:
    """Undo `mount`."""
    subprocess.run(["umount", str(folder)], capture_output=True, check=True)

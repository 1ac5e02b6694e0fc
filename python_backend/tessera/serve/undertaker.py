"""Ends what a tessera-serve leaves that was killed outright: a process of its own, which waits
until the pipe from it is closed.

Processes of models do not notice the end of tritonserver, and may wait for a lock with Python's own
lock held, so that no thread of theirs could end them. Standard library only; runs as a script.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_DONE = b"done\n"


@dataclass(frozen=True)
class Undertaker:
    """Waits for the end of this process; it is nobody's child."""

    _pipe: IO[bytes]

    @classmethod
    def of(cls, group: int) -> Undertaker:
        """Have a group of processes killed when this process ends before `dismiss`."""
        command = [sys.executable, "-S", str(Path(__file__)), str(group)]
        first = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        first.wait()
        assert first.stdin is not None
        return cls(first.stdin)

    def dismiss(self) -> None:
        """Nothing is left to end."""
        with contextlib.suppress(BrokenPipeError), self._pipe as pipe:
            pipe.write(_DONE)


def _wait(group: int) -> None:
    if sys.stdin.buffer.read() != _DONE:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__" and os.fork() == 0:
    _wait(int(sys.argv[1]))

"""The gateway beside a server: `tessera-serve --gateway` starts it once the server is ready, starts
it again if it ends, and ends it with the server.

Its other options come from environment variables, which it reads by itself. Knows nothing of the
gateway's code: it is a process.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tessera.errors import TesseraError, listing
from tessera.serve.intervals import Intervals
from tessera.serve.tritonserver import Ports
from tessera.shared.processes import die_with_parent

NEEDS = (
    "aiohttp",
    "fastapi",
    "fastapi_offline",
    "msgspec",
    "python_multipart",
    "tritonclient",
    "uvicorn",
    "PIL",
)
_STOP_S = 10.0
_QUICK_S, _LONGEST_WAIT_S = 30.0, 30.0
"""Of the gateway's `Intervals`."""


@dataclass(frozen=True)
class GatewayOptions:
    """Where the gateway listens."""

    host: str = "127.0.0.1"
    port: int = 8080


def check_gateway(needs: Sequence[str] = NEEDS) -> None:
    """See whether the gateway's packages are installed.

    Raises:
        TesseraError: some are not.
    """
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        raise TesseraError(
            f"--gateway needs packages that are not installed: {listing(missing)}; "
            'pip install ".[gateway]" in a checkout of Tessera'
        )


def command(options: GatewayOptions, ports: Ports, host: str) -> list[str]:
    """The gateway's command line, in front of the server at these ports of `host`."""
    server = f"[{host}]" if ":" in host else host
    flags = [f"--triton=grpc://{server}:{ports.grpc}", f"--kserve=http://{server}:{ports.http}"]
    flags += [f"--host={options.host}", f"--port={options.port}"]
    return [sys.executable, "-m", "tessera_gateway", *flags]


@dataclass
class GatewayProcess:
    """A gateway that runs until `stop`.

    Attributes:
        command: starts it.
        say: called with every line worth telling the operator, from another thread.
    """

    command: Sequence[str]
    say: Callable[[str], None]
    _process: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ending: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    def start(self) -> None:
        """Start it, in a session of its own, and look after it in a thread."""
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """End it; what it draws is over by then, since the server has ended."""
        with self._lock:
            self._ending.set()
            process = self._process
        if process:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._watcher:
            self._watcher.join()

    def _watch(self) -> None:
        intervals = Intervals(_QUICK_S, _LONGEST_WAIT_S)
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                process = self._begin()
                how = f"has ended ({process.wait()})" if process else ""
            except (OSError, subprocess.SubprocessError) as error:  # such as no memory for it
                how = f"could not be started ({error})"
            if not self._ending.is_set():
                delay = intervals.behind(time.monotonic() - began)
                self.say(f"the gateway {how}; starting it again in {delay:.0f} s")
                self._ending.wait(delay)

    def _begin(self) -> subprocess.Popen[bytes] | None:
        """Start the process, unless it is not wanted any more. It is killed when this one is: by a
        signal that it may answer, its port would stay taken for a while.
        """
        with self._lock:
            if self._ending.is_set():
                return None
            self._process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGKILL),
            )
            return self._process

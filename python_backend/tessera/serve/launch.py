"""Serves a bundle with tritonserver, which is started again whenever it has ended by itself."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tessera.controls.models import engine_is_half, write_models
from tessera.errors import TesseraError, Unavailable
from tessera.manifest import CONTROLNET, Manifest
from tessera.serve.drain import DRAIN_S, LOCK_S, drain
from tessera.serve.gateway import GatewayOptions, GatewayProcess
from tessera.serve.gateway import command as gateway_command
from tessera.serve.hangs import Hangs
from tessera.serve.intervals import Intervals
from tessera.serve.log import whatever_happens
from tessera.serve.repository import Repository
from tessera.serve.retired import Retired
from tessera.serve.run_folder import run_folder, shared_memory
from tessera.serve.serving import SERVING, write_serving
from tessera.serve.silence import Silence
from tessera.serve.starts import STALL_S, Starts
from tessera.serve.supervisor import Supervisor
from tessera.serve.tritonserver import (
    CONTROL_HEADER,
    Ports,
    command,
    environment,
    find_server,
    model_repository,
    models_of,
    restricted,
    url_of,
)
from tessera.serve.versions import (
    check_version,
    known_flags,
    optional_flags,
    running_version,
    stated_version,
)
from tessera.serve.warmup import warm_up
from tessera.shared.checked import CheckedFiles
from tessera.shared.machine import has_driver
from tessera.shared.settings import ServerSettings
from tessera.shared.signing import ServerKey
from tessera.terminal.console import Console

if TYPE_CHECKING:
    from tessera.shared.board import Board

_QUICK_S, _LONGEST_WAIT_S = 120.0, 60.0
"""Of tritonserver's `Intervals`."""


@dataclass(frozen=True)
class Launch:
    """What is started, and how.

    Attributes:
        files: of the bundle, which have been compared with the manifest.
        places: of ControlNets, by name.
        flags: further ones of tritonserver.
        verbose: whether all of its log is shown.
        gateway: where the gateway listens, if there is to be one.
        drain_seconds: that requests may go on when a signal asks for the end.
        stall_seconds: that a model's process may do nothing while it starts or has work.
    """

    settings: ServerSettings
    manifest: Manifest
    files: CheckedFiles
    ports: Ports
    host: str
    places: Mapping[str, str]
    flags: Sequence[str]
    verbose: bool = False
    gateway: GatewayOptions | None = None
    drain_seconds: float = DRAIN_S
    stall_seconds: float = STALL_S

    def run(self, console: Console, timeout: float) -> int:
        """Serve until a signal ends it; the exit status, 0.

        Args:
            console: for what the operator should know.
            timeout: seconds to wait for readiness.

        Raises:
            TesseraError: there is no server, its version is refused, or it does not become ready
                at first.
        """
        intervals, began = Intervals(_QUICK_S, _LONGEST_WAIT_S), time.monotonic()
        with contextlib.ExitStack() as beside:
            supervisor = self._serve(console, timeout, beside)
            while not supervisor.interrupted:
                delay = intervals.behind(time.monotonic() - began)
                supervisor.say(f"starting tritonserver again in {delay:.0f} s")
                if supervisor.wait_interrupted(delay):
                    break
                began = time.monotonic()
                try:
                    supervisor = self._serve(console, timeout, beside, supervisor)
                except (TesseraError, OSError) as error:  # such as a full /dev/shm
                    supervisor.say(str(error))
        return 0

    def _serve(
        self,
        console: Console,
        timeout: float,
        beside: contextlib.ExitStack,
        last: Supervisor | None = None,
    ) -> Supervisor:
        """One run of tritonserver, from start to end; what has looked after it.

        Args:
            console: see `run`.
            timeout: see `run`.
            beside: gets the gateway at the first run; it stays through all of them.
            last: what looked after the run before, to which signals went up to now. From the start
                on they go to what is returned, also if that fails.

        Raises:
            TesseraError: it does not become ready at the first run.
            OSError: there is no room for its files in shared memory.
        """
        with run_folder() as folder:
            supervisor = self._supervisor(folder, console)
            try:
                if self._ready(supervisor, folder, console, timeout, last) and last is None:
                    beside.enter_context(self._gateway(supervisor.say))
                code = supervisor.watch()
                how = f"by signal {-code}" if code < 0 else f"with status {code}"
                end = f"tritonserver has ended {how}"
            except (TesseraError, OSError) as error:
                if last is None:
                    raise
                end = str(error)
            finally:
                supervisor.stop()
        if not supervisor.interrupted:
            supervisor.say(end)
        return supervisor

    @property
    def _log_flags(self) -> list[str]:
        return [] if self.verbose else ["--log-info=false"]

    @property
    def _url(self) -> str:
        return url_of(self.host, self.ports.http)

    def _settings(self, folder: Path) -> ServerSettings:
        """Those of the run that has this folder."""
        return replace(self.settings, board=folder / "board")

    def _supervisor(self, folder: Path, console: Console) -> Supervisor:
        show = whatever_happens(console.say)

        def say(text: str) -> None:
            show(f"tessera-serve: {text}")

        server, plain, controlnets = find_server(folder), model_repository(), folder / "models"
        stated = stated_version(server)
        if stated is not None:
            check_version(stated)  # before models are loaded, which may take minutes
        optional = optional_flags(known_flags(server), self.manifest)
        secret = secrets.token_hex()
        half = engine_is_half(self.settings.engine)
        write_serving(controlnets)
        write_models(controlnets, self.manifest.controlnets, self.places, half=half)
        ports = (self.ports.http, self.ports.grpc)
        settings = self._settings(folder)
        self.files.write(settings.checked)
        variables = settings.to_environment()
        pinned = self.settings.controls.pinned
        line = command(
            server,
            [plain, controlnets],
            self.ports,
            load=[*models_of(plain), *(f"{CONTROLNET}{name}" for name in pinned)],
            host=self.host,
            extra=[
                *restricted(secret),
                *shared_memory(folder),
                *optional,
                *self._log_flags,
                *self.flags,
            ],
        )
        return Supervisor(
            line,
            environment(server, **variables),
            Repository(self._url, {CONTROL_HEADER: secret}),
            say,
            partial(
                drain,
                settings.board,
                settings.activity,
                ports,
                say=say,
                seconds=self.drain_seconds,
            ),
            patient=any(flag.startswith("--trace") for flag in self.flags),
            log=None if self.verbose or has_driver() else show,
            retired=Retired(partial(_works, settings.board)),
            starts=Starts(say, self.stall_seconds),
            hangs=Hangs(say, partial(_tasks, settings.board), self.stall_seconds),
            silence=Silence(say, self.stall_seconds),
        )

    def _ready(
        self,
        supervisor: Supervisor,
        folder: Path,
        console: Console,
        timeout: float,
        last: Supervisor | None,
    ) -> bool:
        """Start it; whether it is ready, and no signal has asked for its end meanwhile."""
        began, name = time.monotonic(), self.manifest.name
        supervisor.start()
        if last is not None:
            if last.interrupted:
                supervisor.interrupt()
            last.wake.close()  # signals are for the new one
        with console.doing(f"starting tritonserver on bundle {name} ...") as news:
            ready = supervisor.wait_ready(
                timeout, lambda s: news(f"loading the models of bundle {name} ... {s:.0f} s")
            )
        if supervisor.interrupted:
            return False
        if not ready:
            raise TesseraError(
                "tritonserver did not become ready; its log above says why (-v shows all of it)"
            )
        untested = check_version(running_version(self._url))
        if untested:
            console.say(f"tessera-serve: {untested}")
        with console.doing("making the first pictures ..."):
            try:
                word = ServerKey(self._settings(folder).key).first
                size = self.manifest.limits.min_size
                self._first_pictures(supervisor, size, word, again=last is not None)
                supervisor.repository.load(SERVING)
            except TesseraError:
                if not supervisor.interrupted:
                    raise
                return False
        console.say(
            f"tessera-serve: bundle {name} ({self.manifest.digest[:12]}) is ready after "
            f"{time.monotonic() - began:.1f} s: HTTP {self.ports.http}, gRPC {self.ports.grpc}, "
            f"metrics {self.ports.metrics}"
        )
        return True

    def _first_pictures(self, supervisor: Supervisor, size: int, word: str, *, again: bool) -> None:
        """Make them. A server that is started again may have so many callers at once that they come
        late: that is no reason to end it.
        """
        try:
            supervisor.beside(partial(warm_up, self._url, size, word))
        except Unavailable as error:
            if not again:
                raise
            supervisor.say(str(error))

    @contextlib.contextmanager
    def _gateway(self, say: Callable[[str], None]) -> Iterator[None]:
        """Run the gateway as long as the body takes, if there is to be one."""
        if self.gateway is None:
            yield
            return
        host = urlsplit(self._url).hostname or "localhost"
        process = GatewayProcess(gateway_command(self.gateway, self.ports, host), say)
        process.start()
        say(f"gateway at http://{self.gateway.host}:{self.gateway.port}")
        try:
            yield
        finally:
            process.stop()


@lru_cache(maxsize=1)
def _board(path: Path) -> Board:
    """The board of the tritonserver that runs, opened once: that takes its lock."""
    from tessera.shared.board import Board  # imports numpy

    return Board(path, patience=LOCK_S)


def _works(board: Path, process: int) -> bool:
    """Whether a process has a job. One is assumed while the board cannot be opened."""
    try:
        return _board(board).works(process)
    except (TesseraError, OSError):
        return True


def _tasks(board: Path, running: Mapping[int, str]) -> Mapping[int, Hashable]:
    """Which processes have to work, and at what; none while the board cannot be opened."""
    try:
        return _board(board).tasks(running)
    except (TesseraError, OSError):
        return {}

"""One run of tritonserver on a bundle, from start to end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tessera.controls.models import Placement, engine_is_half, write_models
from tessera.errors import TesseraError
from tessera.manifest import CONTROLNET, Manifest
from tessera.serve.drain import drain
from tessera.serve.log import has_driver
from tessera.serve.run_folder import run_folder, shared_memory
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
from tessera.serve.warmup import warm_up
from tessera.shared.settings import ServerSettings
from tessera.terminal.console import Console


@dataclass(frozen=True)
class Launch:
    """What is started, and how.

    Attributes:
        placements: of ControlNets, by name.
        flags: further ones of tritonserver.
        verbose: whether all of its log is shown.
    """

    settings: ServerSettings
    manifest: Manifest
    ports: Ports
    host: str
    placements: Mapping[str, Placement]
    flags: Sequence[str]
    verbose: bool = False

    def run(self, console: Console, *, timeout: float) -> int:
        """Serve until a signal ends it; tritonserver's exit status.

        Args:
            console: for what the operator should know.
            timeout: seconds to wait for readiness.

        Raises:
            TesseraError: there is no server, or it does not become ready.
        """
        with run_folder() as folder:
            supervisor = self._supervisor(folder, console)
            try:
                return self._run(supervisor, console, timeout)
            finally:
                supervisor.stop()

    @property
    def _log_flags(self) -> list[str]:
        return [] if self.verbose else ["--log-info=false"]

    @property
    def _url(self) -> str:
        return url_of(self.host, self.ports.http)

    def _supervisor(self, folder: Path, console: Console) -> Supervisor:
        def say(text: str) -> None:
            console.say(f"tessera-serve: {text}")

        server, plain, controlnets = find_server(folder), model_repository(), folder / "models"
        secret = secrets.token_hex()
        half = engine_is_half(self.settings.engine)
        write_models(controlnets, self.manifest.controlnets, self.placements, half=half)
        ports = (self.ports.http, self.ports.grpc)
        settings = replace(self.settings, board=folder / "board")
        variables = settings.to_environment()
        pinned = self.settings.controls.pinned
        line = command(
            server,
            [plain, controlnets],
            self.ports,
            load=[*models_of(plain), *(f"{CONTROLNET}{name}" for name in pinned)],
            host=self.host,
            extra=[*restricted(secret), *shared_memory(folder), *self._log_flags, *self.flags],
        )
        return Supervisor(
            line,
            environment(server, **variables),
            self._url,
            say,
            {CONTROL_HEADER: secret},
            partial(drain, settings.board, settings.activity, ports, say=say),
            patient=any(flag.startswith("--trace") for flag in self.flags),
            log=None if self.verbose or has_driver() else console.say,
        )

    def _run(self, supervisor: Supervisor, console: Console, timeout: float) -> int:
        began, name = time.monotonic(), self.manifest.name
        supervisor.start()
        with console.doing(f"starting tritonserver on bundle {name} ...") as news:
            ready = supervisor.wait_ready(
                timeout, lambda s: news(f"loading the models of bundle {name} ... {s:.0f} s")
            )
        if supervisor.interrupted:
            return supervisor.watch()  # until it has ended
        if not ready:
            raise TesseraError(
                "tritonserver did not become ready; its log above says why (-v shows all of it)"
            )
        with console.doing("making the first pictures ..."):
            try:
                warm_up(self._url, self.manifest.limits.min_size)
            except TesseraError:
                if not supervisor.interrupted:
                    raise
                return supervisor.watch()
        console.say(
            f"tessera-serve: bundle {name} ({self.manifest.digest[:12]}) is ready after "
            f"{time.monotonic() - began:.1f} s: HTTP {self.ports.http}, gRPC {self.ports.grpc}, "
            f"metrics {self.ports.metrics}"
        )
        return supervisor.watch()

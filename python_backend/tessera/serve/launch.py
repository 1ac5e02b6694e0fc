"""One run of tritonserver on a bundle, from start to end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.status import Status

from tessera.controls.models import Placement, engine_is_half, write_models
from tessera.errors import TesseraError
from tessera.manifest import CONTROLNET, Manifest
from tessera.serve.drain import drain
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


@dataclass(frozen=True)
class Launch:
    """What is started, and how.

    Attributes:
        variables: of the model processes' environment.
        placements: of ControlNets, by name.
        flags: further ones of tritonserver.
    """

    bundle: Path
    manifest: Manifest
    ports: Ports
    host: str
    variables: Mapping[str, str]
    placements: Mapping[str, Placement]
    flags: Sequence[str]

    def run(self, console: Console, *, pinned: Sequence[str], timeout: float) -> int:
        """Serve until a signal ends it; tritonserver's exit status.

        Args:
            console: for what the operator should know.
            pinned: ControlNets that are loaded with the server.
            timeout: seconds to wait for readiness.

        Raises:
            TesseraError: there is no server, or it does not become ready.
        """
        with run_folder() as folder:
            supervisor = self._supervisor(folder, console, pinned)
            try:
                return self._run(supervisor, console, timeout)
            finally:
                supervisor.stop()

    @property
    def _url(self) -> str:
        return url_of(self.host, self.ports.http)

    def _supervisor(self, folder: Path, console: Console, pinned: Sequence[str]) -> Supervisor:
        def say(text: str) -> None:
            console.print(f"tessera-serve: {text}", soft_wrap=True)

        server, plain, controlnets = find_server(folder), model_repository(), folder / "models"
        secret = secrets.token_hex()
        half = engine_is_half(self.variables["TESSERA_ENGINE"])
        write_models(controlnets, self.manifest.controlnets, self.placements, half=half)
        variables = {
            "TESSERA_BUNDLE": str(self.bundle.resolve()),
            "TESSERA_BOARD": str(folder / "board"),
            **self.variables,
        }
        line = command(
            server,
            [plain, controlnets],
            self.ports,
            load=[*models_of(plain), *(f"{CONTROLNET}{name}" for name in pinned)],
            host=self.host,
            extra=[*restricted(secret), *shared_memory(folder), *self.flags],
        )
        return Supervisor(
            line,
            environment(server, **variables),
            self._url,
            say,
            {CONTROL_HEADER: secret},
            partial(drain, folder / "board", (self.ports.http, self.ports.grpc), say=say),
            patient=any(flag.startswith("--trace") for flag in self.flags),
        )

    def _run(self, supervisor: Supervisor, console: Console, timeout: float) -> int:
        began, name = time.monotonic(), self.manifest.name
        supervisor.start()
        with Status(f"starting tritonserver on bundle {name} ...", console=console) as status:
            ready = supervisor.wait_ready(
                timeout,
                lambda s: status.update(f"loading the models of bundle {name} ... {s:.0f} s"),
            )
        if supervisor.interrupted:
            return supervisor.watch()  # until it has ended
        if not ready:
            raise TesseraError(
                "tritonserver did not become ready; its log above says why (-v shows all of it)"
            )
        with Status("making the first pictures ...", console=console):
            try:
                warm_up(self._url, self.manifest.limits.min_size)
            except TesseraError:
                if not supervisor.interrupted:
                    raise
                return supervisor.watch()
        console.print(
            f"tessera-serve: bundle {name} ({self.manifest.digest[:12]}) is ready after "
            f"{time.monotonic() - began:.1f} s: HTTP {self.ports.http}, gRPC {self.ports.grpc}, "
            f"metrics {self.ports.metrics}",
            soft_wrap=True,
        )
        return supervisor.watch()

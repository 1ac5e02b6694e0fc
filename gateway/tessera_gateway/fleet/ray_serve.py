"""Ray Serve starts the workers, watches them and starts failed ones again. Only this module knows
Ray.

Requests do not go through Serve: the front sends them straight to a worker's Triton. Workers say
where they are to a directory, a small actor, again and again.

Every worker is an application of its own, which the front's actor starts and deletes. So the one
that is stopped is the one that was drained, where Serve would choose one of its replicas itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import aiohttp
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from tessera_gateway.app import reload_keys
from tessera_gateway.fleet.addresses import Addresses
from tessera_gateway.fleet.front import Front
from tessera_gateway.fleet.scaler import Scaler
from tessera_gateway.fleet.settings import FleetError, FleetSettings, Server

log = logging.getLogger("tessera_gateway")
HOST = "127.0.0.1"
"""Where workers of a Ray that is started here listen: Triton must not face the network. Ray takes
another address of the machine for its node, even if it is given this one.
"""

HEAD = "node:__internal_head__"
"""A resource that only Ray's head node has."""

NAMESPACE, DIRECTORY = "tessera", "directory"
FRONT, WORKER = "tessera", "worker-"
"""Names of applications."""

SAYS_EVERY_S = 0.5
STARTS_WITHIN_S, ENDS_WITHIN_S = 1200.0, 60.0
ASKS_EVERY_S, GIVES_UP_S = 5.0, 60.0
"""How often Ray is asked whether it is there, and after how long without an answer it is not."""
_ENDING = (ApplicationStatus.DELETING, ApplicationStatus.DEPLOY_FAILED)
_FOREIGN = ("PYTHONPATH", "LD_LIBRARY_PATH")
"""Variables of Ray's that would mislead a worker's processes."""


Directory: Any = ray.remote(num_cpus=0, max_restarts=-1)(Addresses)


@cache
def directory() -> Any:
    """The directory's handle. It outlives the actor, and looking it up asks Ray's GCS, which may be
    down just now.
    """
    kept = {"get_if_exists": True, "lifetime": "detached"}  # whoever asks first may end first
    kept["resources"] = {HEAD: 0.001}  # another machine's end takes Ray a minute to notice
    return Directory.options(name=DIRECTORY, namespace=NAMESPACE, **kept).remote()


@serve.deployment(
    graceful_shutdown_timeout_s=ENDS_WITHIN_S, health_check_period_s=1.0, health_check_timeout_s=10
)
class Worker:
    """One `tessera-serve`, which ends with this actor, however that ends."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: FleetSettings, number: int
    ) -> None:
        host = ray.util.get_node_ip_address() if settings.ray else HOST
        http, grpc, metrics = _free_ports(host)
        self._number = number
        self._server = Server(grpc=f"{host}:{grpc}", http=f"{host}:{http}")
        self._process = subprocess.Popen(
            _command(settings, number, host, (http, grpc, metrics)), env=_environment()
        )
        self._says: asyncio.Task[None] | None = None
        await self._ready()
        self._says = asyncio.ensure_future(self._say())

    def check_health(self) -> None:
        """A worker is healthy as long as its process lives: models that are loading are no fault.

        Raises:
            RuntimeError: it has ended.
        """
        if self._process.poll() is not None:
            raise RuntimeError(f"tessera-serve has ended with {self._process.returncode}")

    async def __del__(self) -> None:
        if self._says is not None:  # it may be stopped while it starts
            self._says.cancel()
        await directory().leave.remote(self._number, self._server)
        self._process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self._process.wait, ENDS_WITHIN_S)

    async def _ready(self) -> None:
        url = f"http://{self._server.http}/v2/models/"
        end = time.monotonic() + STARTS_WITHIN_S
        async with aiohttp.ClientSession() as session:
            for model in ("generate", "denoise"):
                while not await _answers(session, f"{url}{model}/ready"):
                    self.check_health()
                    if time.monotonic() > end:
                        raise RuntimeError(f"tessera-serve is not ready in {STARTS_WITHIN_S:g} s")
                    await asyncio.sleep(0.2)

    async def _say(self) -> None:
        while True:
            try:
                await directory().say.remote(self._number, self._server)
            except (RayError, RuntimeError) as error:  # the directory may be started again
                log.warning("the directory does not hear of worker %d: %r", self._number, error)
            await asyncio.sleep(SAYS_EVERY_S)


class _Applications:
    """See `scaler.Starter`: worker N is the application `worker-N`."""

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._known: dict[int, Server] = {}

    async def workers(self) -> dict[int, Server | None]:
        """See `scaler.Starter`. One that cannot be deployed is left out, and so started again.

        A directory that was started again knows nobody at first. So the latest address of a worker
        counts until there is another one.
        """
        with _as_runtime_errors():
            servers = await directory().servers.remote()
            applications = (await asyncio.to_thread(serve.status)).applications
        numbers = {
            number
            for name, application in applications.items()
            if (number := _number(name)) is not None and application.status not in _ENDING
        }
        known = self._known | servers
        self._known = {number: known[number] for number in numbers & known.keys()}
        return {number: self._known.get(number) for number in sorted(numbers)}

    async def start(self, number: int) -> None:
        """See `scaler.Starter`."""
        options = {"num_cpus": self._settings.cpus, "num_gpus": self._settings.gpus}
        worker = cast(Any, Worker).options(ray_actor_options=options)
        target = serve.RunTarget(
            worker.bind(self._settings, number), name=f"{WORKER}{number}", route_prefix=None
        )
        waits = {"wait_for_ingress_deployment_creation": False}
        with _as_runtime_errors():
            await asyncio.to_thread(
                serve.run_many, [target], wait_for_applications_running=False, **waits
            )

    async def stop(self, number: int) -> None:
        """See `scaler.Starter`."""
        with _as_runtime_errors():
            await asyncio.to_thread(serve.delete, f"{WORKER}{number}")


@serve.deployment(graceful_shutdown_timeout_s=ENDS_WITHIN_S, health_check_period_s=2.0)
class Address:
    """The fleet's front, in an actor of its own, and what brings the workers to their number."""

    def __init__(self, settings: FleetSettings) -> None:
        self._front = Front(settings)
        starter = _Applications(settings)
        scaler = Scaler(self._front.pool, starter, settings.scaling, settings.replicas)
        self._tasks = [asyncio.ensure_future(each) for each in (self._front.serve(), scaler.run())]

    def check_health(self) -> None:
        """Whether it listens.

        Raises:
            RuntimeError: it does not.
        """
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"the front has ended: {task.exception()}")

    async def reload_keys(self) -> None:
        """Read the file of keys again."""
        reload_keys(self._front.keyring)

    async def __del__(self) -> None:
        serves, scales = self._tasks
        scales.cancel()
        self._front.stop()
        await asyncio.wait({serves}, timeout=ENDS_WITHIN_S)


def run(settings: FleetSettings) -> None:
    """Run a fleet until SIGTERM or SIGINT. At SIGHUP, its front reads the file of keys again.

    Raises:
        FleetError: Ray or Serve cannot be started, or reached; or Ray has ended meanwhile.
    """
    try:
        _connect(settings)
        found = directory()
        serve.start(proxy_location="Disabled")
        app = application(settings, on_head=bool(settings.ray))
        serve.run(app, name=FRONT, route_prefix=None)
    except (RuntimeError, OSError, RayError) as error:
        ray.shutdown()
        raise FleetError(f"the fleet does not start: {error}") from error
    log.info(
        "the fleet listens on http port %d, grpc port %d", settings.http_port, settings.grpc_port
    )
    ended, changed = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    signal.signal(signal.SIGHUP, lambda *_: changed.set())
    _wait(ended, changed, found)
    serve.delete(FRONT)  # before its workers: it would start them again
    for name in serve.status().applications:
        if _number(name) is not None:
            serve.delete(name)
    if not settings.ray:
        serve.shutdown()
    ray.kill(found)
    ray.shutdown()


def _wait(ended: threading.Event, changed: threading.Event, found: Any) -> None:
    """Until the end that was asked for. Tells the front when its keys have changed.

    Raises:
        FleetError: Ray has ended. Its GCS and raylets do so without anybody telling.
    """
    heard = time.monotonic()
    while not ended.wait(ASKS_EVERY_S):
        if changed.is_set():
            changed.clear()
            _tell_of_keys()
        try:
            ray.get(found.servers.remote(), timeout=ASKS_EVERY_S)
        except (RayError, RuntimeError):  # an actor may be started again
            if time.monotonic() - heard > GIVES_UP_S:
                raise FleetError(
                    f"Ray has not answered for {GIVES_UP_S:g} s: start the fleet again"
                ) from None
        else:
            heard = time.monotonic()


def _tell_of_keys() -> None:
    try:
        front = serve.get_app_handle(FRONT)
        front.reload_keys.remote().result(timeout_s=ASKS_EVERY_S)
    except (RayError, RayServeException, RuntimeError, TimeoutError) as error:
        log.error("the front was not told to read its keys again: %r", error)


def application(settings: FleetSettings, *, on_head: bool = False) -> Any:
    """The application of a fleet: its front, which starts the workers.

    Args:
        settings: of the fleet.
        on_head: whether the front has to be on the cluster's head node, which may have no CPUs to
            give to workers.
    """
    head = {"num_cpus": 0, "resources": {HEAD: 0.001}}
    options = head if on_head else {"num_cpus": 0.5}
    return cast(Any, Address).options(ray_actor_options=options).bind(settings)


def _connect(settings: FleetSettings) -> None:
    """To the Ray that the settings name, or to one that is started here."""
    if settings.ray:
        ray.init(address=settings.ray, namespace=NAMESPACE)
        return
    needed = settings.scaling.max * settings.cpus + 1
    ray.init(
        address="local",
        namespace=NAMESPACE,
        num_cpus=int(max(os.cpu_count() or 1, needed)),
        include_dashboard=False,
        _node_ip_address=HOST,
    )


@contextlib.contextmanager
def _as_runtime_errors() -> Iterator[None]:
    """Ray's own errors as those that a starter may raise: Ray may be back a moment later."""
    try:
        yield
    except (RayError, RayServeException) as error:
        raise RuntimeError(str(error)) from error


def _number(name: str) -> int | None:
    """Of the worker whose application has this name."""
    number = name.removeprefix(WORKER)
    return int(number) if number != name and number.isdecimal() else None


def _command(
    settings: FleetSettings, number: int, host: str, ports: tuple[int, int, int]
) -> list[str]:
    http, grpc, metrics = map(str, ports)
    folder = Path(settings.templates)
    if not settings.shared_templates:
        folder /= f"{WORKER}{number}"
    program = Path(sys.executable).with_name("tessera-serve")
    ports_of = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    return [
        *("setpriv", "--pdeathsig", "TERM", str(program), settings.bundle, "--host", host),
        *ports_of,
        *("--templates", str(folder), *settings.serve),
    ]


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN and not name.startswith("RAY_")
    }


def _free_ports(host: str) -> tuple[int, int, int]:
    sockets = [socket.create_server((host, 0)) for _ in range(3)]
    first, second, third = (each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    return first, second, third


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False

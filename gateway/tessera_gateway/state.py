"""What the parts of one running gateway share."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import HTTPConnection

from tessera.contract import JobStatus
from tessera_client import AsyncClient, Preview, ServedBundle
from tessera_gateway.kept import KeptPictures
from tessera_gateway.keys import Keyring
from tessera_gateway.settings import GatewaySettings
from tessera_gateway.shared import Shared

T = TypeVar("T")
BUNDLE_S = 10.0
"""How long what the server said of its bundle is believed."""
STATUS_S = 0.1
"""How old the status of a job may be that is told to those who watch it."""
PREVIEW_S = 0.5
"""And its picture so far."""


@dataclass
class Gateway:
    """Kept in `app.state.gateway`.

    Attributes:
        settings: the operator's.
        client: to the server; every API uses this one.
        keyring: who may use it.
        kept: pictures behind URLs.
        statuses: of jobs, for those who watch them.
        previews: of jobs, likewise.
        closing: whether it is being stopped.
    """

    settings: GatewaySettings
    client: AsyncClient
    keyring: Keyring
    kept: KeptPictures
    statuses: Shared[JobStatus] = field(init=False)
    previews: Shared[Preview | None] = field(init=False)
    closing: bool = False
    _jobs: Counter[str] = field(default_factory=Counter)
    _bundle: tuple[float, ServedBundle] | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _threads: CapacityLimiter = field(
        default_factory=lambda: CapacityLimiter(len(os.sched_getaffinity(0)))
    )

    def __post_init__(self) -> None:
        self.statuses = Shared(self.client.status, STATUS_S)
        self.previews = Shared(self.client.preview, PREVIEW_S, STATUS_S)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what would hold the event loop up (a picture's file, a large JSON); as many at a time
        as there are cores, which bounds the memory, too.
        """
        return await to_thread.run_sync(work, limiter=self._threads)

    async def bundle(self) -> ServedBundle:
        """What the server serves; asked for now and then only.

        Raises:
            TesseraError: the server does not say.
        """
        now = time.monotonic()
        if self._bundle is None or now - self._bundle[0] > BUNDLE_S:
            self._bundle = (now, await self.client.bundle())
        return self._bundle[1]

    @contextmanager
    def drawing(self, job_id: str) -> Iterator[None]:
        """Note that a job is under way, as long as the body takes: it may be on its way to the
        server, which does not know it yet.
        """
        self._jobs[job_id] += 1
        try:
            yield
        finally:
            self._jobs[job_id] -= 1
            self._jobs += Counter()  # without those at 0

    def draws(self, job_id: str) -> bool:
        """Whether a job of this gateway is under way."""
        return job_id in self._jobs

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that lives until it has ended, though its caller may have gone."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Wait for what is under way, and close the connections."""
        self.closing = True
        while self._tasks:  # one may start another
            await asyncio.wait(self._tasks)
        await self.client.close()


def gateway_of(connection: HTTPConnection) -> Gateway:
    """The gateway that serves a request; a dependency of routes, too."""
    gateway: Gateway = connection.app.state.gateway
    return gateway

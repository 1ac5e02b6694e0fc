"""Brings a fleet to the number of workers that it should have: starts, drains and stops them.

A worker that is to be stopped gets no more requests, ends those that it has, and is stopped then.
If it is wanted again meanwhile, it is simply used again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Protocol

from tessera_gateway.fleet.pool import Pool
from tessera_gateway.fleet.scaling import Autoscaling, Decider
from tessera_gateway.fleet.settings import Server

log = logging.getLogger("tessera_gateway")
LOOKS_EVERY_S = 0.5


class Starter(Protocol):
    """What starts and stops workers, and replaces failed ones. They have numbers."""

    async def workers(self) -> dict[int, Server | None]:
        """All that are started and not being stopped; `None` for one that has no address yet."""
        ...

    async def start(self, number: int) -> None:
        """Start one. Does not wait until it is ready."""
        ...

    async def stop(self, number: int) -> None:
        """Stop one, and wait for its end."""
        ...


class Scaler:
    """Of one fleet.

    Args:
        pool: its workers.
        starter: starts and stops them.
        settings: bounds and pace.
        first: how many there are at first, unless some are there already.
    """

    def __init__(self, pool: Pool, starter: Starter, settings: Autoscaling, first: int) -> None:
        self._pool = pool
        self._starter = starter
        self._decider = Decider(settings, first)
        self._looked = False
        self._draining: dict[int, float] = {}
        self._stopping: dict[int, asyncio.Task[None]] = {}

    @property
    def wanted(self) -> int:
        """How many workers there should be."""
        return self._decider.count

    async def run(self) -> None:
        """Look again and again. What fails is tried again."""
        while True:
            try:
                await self.look(time.monotonic())
            except (RuntimeError, OSError, TimeoutError) as error:
                log.warning("the workers cannot be brought to their number: %r", error)
            await asyncio.sleep(LOOKS_EVERY_S)

    async def look(self, now: float) -> None:
        """See what workers there are, decide how many there should be, and do a step to that.

        Args:
            now: the time by which delays are counted.
        """
        found = await self._starter.workers()
        workers = {n: server for n, server in found.items() if n not in self._stopping}
        self._pool.have(server for server in found.values() if server)
        if workers and not self._looked:  # a front before this one has started them
            self._decider.adopt(len(workers))
        self._looked = True
        seconds = self._pool.book.seconds(time.monotonic())
        before = self._decider.count
        wanted = self._decider.decide(now, seconds.values(), held=self._pool.held)
        if wanted != before:
            log.info("%d workers are wanted, for %.1f s of work", wanted, sum(seconds.values()))
        self._draining = {n: at for n, at in self._draining.items() if n in workers}
        await self._adjust(workers, seconds, wanted)
        leaving = self._draining.keys() | self._stopping.keys()
        self._pool.book.draining = {s.grpc for n, s in found.items() if s and n in leaving}
        self._stop_idle(workers)

    async def _adjust(
        self, workers: dict[int, Server | None], seconds: dict[str, float], wanted: int
    ) -> None:
        used = [n for n in workers if n not in self._draining]
        while len(used) < wanted and self._draining:
            number, _ = self._draining.popitem()
            log.info("worker %d is used again", number)
            used.append(number)
        taken = set(workers) | set(self._stopping)
        free = (n for n in range(wanted + len(taken)) if n not in taken)
        for _ in range(wanted - len(used)):
            number = next(free)
            log.info("worker %d is started", number)
            await self._starter.start(number)

        def work(number: int) -> tuple[bool, float, int]:
            server = workers[number]
            return server is not None, seconds.get(server.grpc if server else "", 0.0), -number

        for number in sorted(used, key=work)[: max(0, len(used) - wanted)]:
            log.info("worker %d gets no more requests", number)
            self._draining[number] = time.monotonic()

    def _stop_idle(self, workers: dict[int, Server | None]) -> None:
        for number, since in list(self._draining.items()):
            server = workers[number]
            entry = self._pool.book.workers.get(server.grpc) if server else None
            if entry is None or entry.idle(since):
                del self._draining[number]
                log.info("worker %d is stopped", number)
                self._stopping[number] = asyncio.ensure_future(self._stop(number))

    async def _stop(self, number: int) -> None:
        try:
            await _logged(self._starter.stop(number), number)
        finally:
            del self._stopping[number]


async def _logged(stopping: Awaitable[None], number: int) -> None:
    try:
        await stopping
    except (RuntimeError, OSError, TimeoutError) as error:
        log.warning("worker %d does not stop: %r", number, error)

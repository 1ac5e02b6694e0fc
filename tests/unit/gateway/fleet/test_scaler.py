"""Workers that are started, drained and stopped, with fake workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tessera_gateway.fleet import wire
from tessera_gateway.fleet.book import Book, NoWorker
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.pool import Member, Pool
from tessera_gateway.fleet.scaler import Scaler
from tessera_gateway.fleet.scaling import Autoscaling, Hold
from tessera_gateway.fleet.settings import Server
from tests.fakes.kserve import FakeTriton
from tests.samples.waiting import PATIENCE_S


@dataclass
class FakeStarter:
    """See `scaler.Starter`. A worker that was started gets an address by `ready`."""

    running: dict[int, FakeTriton] = field(default_factory=dict)
    addresses: dict[int, Server] = field(default_factory=dict)
    stopped: list[int] = field(default_factory=list)

    async def workers(self) -> dict[int, Server | None]:
        return {number: self.addresses.get(number) for number in self.running}

    async def start(self, number: int) -> None:
        assert number not in self.running
        self.running[number] = FakeTriton(str(number))

    async def stop(self, number: int) -> None:
        worker = self.running.pop(number)
        if self.addresses.pop(number, None):
            await worker.stop()
        self.stopped.append(number)

    async def ready(self) -> None:
        """The lowest number gets the first address, which is chosen among equal ones."""
        new = [number for number in self.running if number not in self.addresses]
        started = [(await self.running[n].start(), self.running[n]) for n in new]
        for number, pair in zip(sorted(new), sorted(started, key=lambda p: p[0].grpc), strict=True):
            self.addresses[number], self.running[number] = pair


@dataclass
class It:
    """A pool without a front. Delays go by a clock that only `look` moves."""

    pool: Pool
    starter: FakeStarter
    scaler: Scaler
    now: float = 0.0

    async def look(self, seconds: float = 0.0) -> None:
        """Look when every worker has told, some time after the last look."""
        for server in self.starter.addresses.values():
            if server.grpc in self.pool.members:
                await self.pool.ask(server.grpc)
        self.now += seconds
        await self.scaler.look(self.now)
        async with asyncio.timeout(PATIENCE_S):
            while self.scaler._stopping:
                await asyncio.sleep(0.01)

    async def grown(self) -> None:
        """What was started is ready."""
        await self.starter.ready()
        await self.look()
        await self.look()

    def draw(self, job: str, steps: int = 10) -> asyncio.Task[int]:
        """Ask for a picture: 0.128 s of work a step."""

        async def send(member: Member) -> bytes:
            texts = {"PROMPT": "x", "JOB_ID": job}
            return await member.call("ModelInfer", wire.request_of("generate", texts))

        async def answer() -> int:
            drawn = await self.pool.route(Peek("generate", job=job, steps=steps), send)
            name = wire.first_text(drawn).decode()
            return next(n for n, w in self.starter.running.items() if w.name == name)

        return asyncio.ensure_future(answer())

    async def drawing(self, jobs: dict[int, set[str]]) -> None:
        """Wait until these jobs are at these workers."""
        async with asyncio.timeout(PATIENCE_S):
            while {n: set(w.drawn) for n, w in self.starter.running.items() if w.drawn} != jobs:
                await asyncio.sleep(0.01)

    def hold(self, *, holds: bool = True) -> None:
        for worker in self.starter.running.values():
            worker.holds = holds


@asynccontextmanager
async def fleet(first: int, at_least: int, hold: Hold | None = None) -> AsyncIterator[It]:
    pool, starter = Pool(Book(), hold or Hold(30.0, 2)), FakeStarter()
    bounds = Autoscaling(min=at_least, max=3, target_seconds=2, up_delay=1, down_delay=10)
    it = It(pool, starter, Scaler(pool, starter, bounds, first))
    try:
        await it.look()
        await it.grown()
        yield it
    finally:
        it.hold(holds=False)
        await pool.close()
        for number in list(starter.running):
            await starter.stop(number)


def test_a_step_of_load_and_back_loses_nothing() -> None:
    async def run() -> None:
        async with fleet(1, 1) as it:
            it.hold()
            tasks = [it.draw(job) for job in "abcd"]
            await it.drawing({0: set("abcd")})
            await it.look(0.5)
            assert it.starter.running.keys() == {0}
            await it.look(1.0)
            assert it.starter.running.keys() == {0, 1, 2}
            await it.grown()
            it.hold(holds=False)
            assert await asyncio.gather(*tasks) == [0] * 4
            for _ in range(3):
                await it.look(9.0)
            assert it.starter.running.keys() == {0}
            assert sorted(it.starter.stopped) == [1, 2]

    asyncio.run(run())


def test_a_worker_that_drains_gets_nothing_and_ends_what_it_has() -> None:
    async def run() -> None:
        async with fleet(2, 1) as it:
            it.hold()
            tasks = [it.draw("a"), it.draw("b", steps=1)]
            await it.drawing({0: {"a"}, 1: {"b"}})
            await it.look(11.0)
            assert it.pool.book.draining == {it.starter.addresses[1].grpc}
            tasks.append(it.draw("c", steps=2))
            await it.drawing({0: {"a", "c"}, 1: {"b"}})
            await it.look()
            assert it.starter.stopped == []
            it.starter.running[1].holds = False
            assert await tasks[1] == 1
            await it.look()
            assert it.starter.stopped == [1]
            it.hold(holds=False)
            assert [await tasks[0], await tasks[2]] == [0, 0]

    asyncio.run(run())


def test_the_jobs_of_others_are_waited_for_too() -> None:
    """As its own word has them, and not an old one."""

    async def run() -> None:
        async with fleet(2, 1) as it:
            running = {"job": "theirs", "left": 1, "height": 1, "width": 1}
            it.starter.running[1].load["running"] = [running]
            it.starter.running[0].load["running"] = [running, running]
            await it.look(11.0)
            await it.look(1.0)
            assert (len(it.pool.book.draining), it.starter.stopped) == (1, [])
            it.starter.running[1].load["running"] = []
            await it.look(1.0)
            assert it.starter.stopped == [1]

    asyncio.run(run())


def test_a_worker_that_drains_is_used_again() -> None:
    async def run() -> None:
        async with fleet(2, 1) as it:
            it.hold()
            tasks = [it.draw("a"), it.draw("b", steps=1)]
            await it.drawing({0: {"a"}, 1: {"b"}})
            await it.look(11.0)
            tasks.append(it.draw("c"))
            await it.drawing({0: {"a", "c"}, 1: {"b"}})
            await it.look(0.5)
            assert len(it.pool.book.draining) == 1
            await it.look(2.0)
            assert it.pool.book.draining == set()
            assert it.starter.running.keys() == {0, 1}
            assert it.starter.stopped == []
            it.hold(holds=False)
            await asyncio.gather(*tasks)

    asyncio.run(run())


def test_from_zero_and_back() -> None:
    async def run() -> None:
        async with fleet(0, 0) as it:
            assert it.starter.running == {}
            task = it.draw("a")
            await asyncio.sleep(0.05)
            assert (it.pool.held, task.done()) == (1, False)
            await it.look()
            assert it.starter.running.keys() == {0}
            await it.grown()
            assert await task == 0
            assert it.pool.held == 0
            for _ in range(4):
                await it.look(9.0)
            assert it.starter.running == {}
            with pytest.raises(NoWorker):
                await it.pool.first(wait=False)

    asyncio.run(run())


def test_a_worker_that_is_still_starting_is_stopped_first() -> None:
    async def run() -> None:
        async with fleet(1, 1) as it:
            it.hold()
            tasks = [it.draw(job) for job in "ab"]
            await it.drawing({0: set("ab")})
            await it.look(2.0)
            assert it.starter.running.keys() == {0, 1}
            it.hold(holds=False)
            await asyncio.gather(*tasks)
            await it.look(2.0)
            await it.look(11.0)
            assert it.starter.stopped == [1]

    asyncio.run(run())


def test_who_waits_for_a_worker_is_told_when_none_comes() -> None:
    async def run() -> None:
        async with fleet(0, 0, Hold(0.3, 2)) as it:
            for task in [it.draw(job) for job in "ab"]:
                with pytest.raises(NoWorker, match=r"has become ready in 0\.3 s"):
                    await task
            assert it.pool.held == 0

    asyncio.run(run())


def test_only_so_many_wait_for_a_worker() -> None:
    async def run() -> None:
        async with fleet(0, 0, Hold(600.0, 2)) as it:
            tasks = [it.draw(job) for job in "ab"]
            while it.pool.held < 2:
                await asyncio.sleep(0.01)
            with pytest.raises(NoWorker, match="and 2 requests wait for one already"):
                await it.draw("c")
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert it.pool.held == 0

    asyncio.run(run())


def test_workers_of_an_earlier_front_stay() -> None:
    async def run() -> None:
        pool, starter = Pool(Book()), FakeStarter()
        for number in range(3):
            await starter.start(number)
        scaler = Scaler(pool, starter, Autoscaling(min=1, max=3), 1)
        await scaler.look(0.0)
        assert scaler.wanted == 3
        assert starter.running.keys() == {0, 1, 2}

    asyncio.run(run())

"""Copies of templates, asked for and of hot ones, with fake workers."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from tessera.errors import InvalidInput
from tessera.requests.edit import template_id
from tessera_gateway.fleet import wire
from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.copies import Copies, register
from tessera_gateway.fleet.peek import Peek, peek, tensors_of
from tessera_gateway.fleet.pool import Pool
from tessera_gateway.fleet.several import everywhere
from tests.fakes.kserve import FakeTriton, fake_workers
from tests.samples.waiting import PATIENCE_S

PICTURE = np.random.default_rng(0).integers(0, 256, (1, 8, 16, 3), np.uint8)
TEMPLATE = template_id(PICTURE[0])
IMAGE = wire.Tensor("IMAGE", PICTURE.shape, PICTURE.tobytes(), "UINT8")


@dataclass
class It:
    """A pool and its workers, the one with the lower address first."""

    pool: Pool
    workers: list[FakeTriton]

    async def register(self, copies: int, *more: wire.Tensor, **values: Any) -> dict[str, Any]:
        given = {"ACTION": "register", "STEPS": 7, "COPIES": copies, **values}
        tensors = [*tensors_of(given), *more]
        answer: dict[str, Any] = json.loads(
            await register(self.pool, peek("templates", tensors), tensors)
        )
        return answer

    async def hear(self) -> None:
        for name in self.pool.members:
            await self.pool.ask(name)

    def copies(self, reason: str, outcome: str) -> float | None:
        labels = {"reason": reason, "outcome": outcome}
        registry = self.pool.metrics.registry
        return registry.get_sample_value("tessera_fleet_copies_total", labels)


@asynccontextmanager
async def fleet(names: str = "abc") -> AsyncIterator[It]:
    async with fake_workers(*names) as (workers, servers):
        pool = Pool(Book())
        pool.have(servers)
        for server in servers:
            await pool.ask(server.grpc)
        pairs = sorted(zip(servers, workers, strict=True), key=lambda pair: pair[0].grpc)
        try:
            yield It(pool, [worker for _, worker in pairs])
        finally:
            await pool.close()


def test_a_template_is_registered_on_as_many_workers_as_asked_for() -> None:
    async def run() -> None:
        async with fleet() as it:
            answer = await it.register(2, IMAGE)
            assert answer == {"template": TEMPLATE, "steps": 7, "copies": 2}
            has = [worker.pictures.get(TEMPLATE) for worker in it.workers]
            assert has == [(PICTURE.shape, PICTURE.tobytes())] * 2 + [None]
            for worker in it.workers[:2]:
                (asked,) = worker.registered
                assert (asked.steps, asked.copies) == (7, None)
            assert it.copies("asked", "done") == 1

    asyncio.run(run())


def test_by_its_id_the_picture_is_fetched_first() -> None:
    async def run() -> None:
        async with fleet() as it:
            await it.register(1, IMAGE)
            await it.hear()
            assert (await it.register(9, TEMPLATE=TEMPLATE))["copies"] == 3, "as many as there are"
            assert {w.pictures[TEMPLATE][1] for w in it.workers} == {PICTURE.tobytes()}

    asyncio.run(run())


def test_what_is_recorded_already_is_no_new_copy() -> None:
    async def run() -> None:
        async with fleet() as it:
            recorded = {"template": TEMPLATE, "scheduler": "", "steps": 7, "kept": 7}
            it.workers[2].load["recordings"] = [recorded]
            await it.hear()
            assert (await it.register(1, IMAGE))["copies"] == 1
            assert [len(worker.registered) for worker in it.workers] == [0, 0, 1]

    asyncio.run(run())


def test_a_copy_that_fails_is_not_counted() -> None:
    async def run() -> None:
        async with fleet() as it:
            it.workers[1].fails = (grpc.StatusCode.UNAVAILABLE, "there is no room")
            assert (await it.register(3, IMAGE))["copies"] == 2
            assert (it.copies("asked", "done"), it.copies("asked", "failed")) == (1, 1)

    asyncio.run(run())


@pytest.mark.parametrize("copies", [0, -1])
def test_fewer_than_one_are_refused(copies: int) -> None:
    async def run() -> None:
        async with fleet() as it:
            with pytest.raises(InvalidInput, match=f"COPIES is {copies}; accepted: an integer"):
                await it.register(copies, IMAGE)
            assert not any(worker.registered for worker in it.workers)

    asyncio.run(run())


async def heat(it: It, *, fails: bool = False, **more: Any) -> None:
    """An edit waits for thirty seconds on the first worker, while the second one has nothing."""
    home, other = it.workers
    home.pictures[TEMPLATE] = (PICTURE.shape, PICTURE.tobytes())
    home.load["templates"] = [TEMPLATE]
    home.load["running"] = [{"job": "x", "left": 300, "height": 10, "width": 10}]
    other.fails = (grpc.StatusCode.UNAVAILABLE, "there is no room") if fails else None
    await it.hear()
    Copies(it.pool)
    asked = Peek("edit", template=TEMPLATE, mask=0.1, steps=5, scheduler="euler", **more)
    await it.pool.route(asked, lambda member: member.infer(wire.request_of("edit", {})))
    async with asyncio.timeout(PATIENCE_S):
        while it.pool.copying:
            await asyncio.sleep(0.01)


def test_a_hot_template_is_copied_to_the_worker_that_would_be_done_earlier() -> None:
    async def run() -> None:
        async with fleet("ab") as it:
            await heat(it)
            (asked,) = it.workers[1].registered
            assert (asked.template, asked.steps, asked.scheduler) == (TEMPLATE, 5, "euler")
            assert it.workers[1].pictures == it.workers[0].pictures
            assert it.copies("hot", "done") == 1

    asyncio.run(run())


WORDS = {
    "PROMPT": "a star",
    "NEGATIVE_PROMPT": "grey",
    "LORAS": '[{"name": "ink", "weight": 0.5, "text_weight": 0.0}]',
}


@pytest.mark.parametrize(
    ("more", "recorded"),
    [
        ({"quality": "balanced"}, True),
        ({"quality": "fast"}, False),
        ({"quality": "balanced", "regions": 2}, False),
    ],
    ids=["balanced", "fast", "regions"],
)
def test_a_hot_template_is_recorded_with_what_its_edits_have(
    more: dict[str, Any], recorded: bool
) -> None:
    """Else those with LoRAs could not use the copy. Some read the recording with the empty
    prompt.
    """
    sent = [*tensors_of(WORDS), wire.Tensor("CLIP_SKIP", (1, 1), struct.pack("<i", 1), "INT32")]

    async def run() -> None:
        async with fleet("ab") as it:
            await heat(it, words=peek("edit", sent).words, **more)
            (asked,) = it.workers[1].registered
            got = {each.name: bytes(each.data or b"") for each in asked.words}
            assert got == ({each.name: each.data for each in sent} if recorded else {})
            assert it.copies("hot", "done") == 1

    asyncio.run(run())


def test_a_copy_that_cannot_be_made_is_counted() -> None:
    async def run() -> None:
        async with fleet("ab") as it:
            await heat(it, fails=True)
            assert it.copies("hot", "failed") == 1
            it.workers[0].pictures.clear()
            it.workers[1].fails = None
            await it.pool.route(
                Peek("edit", template=TEMPLATE, mask=0.1),
                lambda member: member.infer(wire.request_of("edit", {})),
            )
            (task,) = it.pool.copying.values()
            await task
            assert it.copies("hot", "failed") == 2, "the picture was evicted meanwhile"

    asyncio.run(run())


def test_an_eviction_waits_for_a_copy() -> None:
    """Else the template would come back."""

    async def run() -> None:
        async with fleet("ab") as it:
            for worker in it.workers:
                worker.templates = {"template": TEMPLATE, "bytes": 1}
            release = asyncio.Event()
            it.pool.copying[TEMPLATE] = asyncio.ensure_future(release.wait())  # type: ignore[arg-type]
            evict = Peek("templates", action="evict", template=TEMPLATE)
            evicting = asyncio.ensure_future(everywhere(it.pool, evict))
            await asyncio.sleep(0.05)
            assert not any(worker.evicted for worker in it.workers)
            release.set()
            await evicting
            assert [worker.evicted for worker in it.workers] == [[TEMPLATE]] * 2
            it.pool.copying.clear()

    asyncio.run(run())

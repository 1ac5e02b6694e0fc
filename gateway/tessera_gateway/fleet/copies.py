"""Templates on several workers: as many as a registration asks for, and more of hot ones.

A worker gives a template's picture back (ACTION `picture`), and another one registers it. The
recording is made anew there: it may have gigabytes, and a picture has megabytes. Where workers
share a folder of templates, the second one finds the recording there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from tessera.contract import MODELS
from tessera.errors import InvalidInput
from tessera_gateway.fleet import expected, wire
from tessera_gateway.fleet.book import Choice, NoWorker
from tessera_gateway.fleet.hot import Heat
from tessera_gateway.fleet.peek import Peek, peek, tensors_of
from tessera_gateway.fleet.pool import Lost, Member, Pool
from tessera_gateway.fleet.wire import Tensor

log = logging.getLogger("tessera_gateway")
FETCHES_WITHIN_S = 30.0
_DTYPES = {spec.name: spec.dtype for spec in MODELS["templates"].inputs}
_FAILED = (grpc.aio.AioRpcError, Lost, NoWorker, wire.Malformed)


class Copies:
    """Has hot templates copied, one at a time.

    Args:
        pool: the workers; it tells of every choice from now on.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._heat = Heat()
        pool.watch = self._watch

    def _watch(self, edit: Peek, choice: Choice) -> None:
        pool, now = self._pool, time.monotonic()
        if pool.copying:
            return
        target = self._heat.felt(pool.book, edit, choice, now)
        sources = [n for n in pool.book.knowing(edit.template, now) if n != target]
        if target is None or not sources:
            return
        source = choice.worker if choice.worker in sources else sources[0]
        task = asyncio.ensure_future(self._copied(edit, source, target))
        pool.copying[edit.template] = task
        task.add_done_callback(lambda _: pool.copying.pop(edit.template))

    async def _copied(self, edit: Peek, source: str, target: str) -> None:
        pool = self._pool
        values = {"ACTION": "register", "STEPS": edit.steps, "SCHEDULER": edit.scheduler or None}
        tensors = tensors_of({name: v for name, v in values.items() if v is not None})
        tensors += self._words(edit, target)
        try:
            tensors.append(await picture(pool.members[source], edit.template))
        except (*_FAILED, KeyError) as error:  # a worker may have left meanwhile
            log.warning("template %s is not copied to %s: %s", edit.template, target, error)
            pool.metrics.copied("hot", "failed")
            return
        await spread(pool, tensors, [name for name in pool.members if name != target], 1, "hot")

    def _words(self, edit: Peek, target: str) -> Sequence[Tensor]:
        """What the copy is recorded with, so that the edit can use it there: its prompts and LoRAs,
        unless it reads the recording with the empty prompt.
        """
        entry = self._pool.book.workers.get(target)
        if entry is None or expected.reads_empty(entry.load, edit):
            return ()
        return edit.words


async def register(
    pool: Pool, asked: Peek, tensors: Iterable[Tensor], timeout: float | None = None
) -> str:
    """Register a template on as many workers as COPIES says, or on all if there are fewer.

    The first one is chosen as ever; copies are made once it is recorded there. What fails later
    only makes the number of copies smaller that the answer tells.

    Args:
        pool: the workers.
        asked: a peek at the request; it has COPIES.
        tensors: its inputs.
        timeout: seconds for each worker.

    Returns:
        RESULT of the answer.

    Raises:
        InvalidInput: COPIES is below 1.
        grpc.aio.AioRpcError: the first worker's answer is an error.
        Lost, NoWorker: see `Pool.route`.
    """
    if asked.copies is None or asked.copies < 1:
        raise InvalidInput("COPIES", asked.copies, "an integer from 1")
    given = [each for each in tensors if each.name != "COPIES"]
    taken: list[Member] = []

    async def send(member: Member) -> bytes:
        taken.append(member)
        return await member.infer(_request(given), timeout)

    result: dict[str, Any] = json.loads(wire.first_text(await pool.route(asked, send)))
    first, copies = taken[-1], 1
    if asked.copies > 1:
        own = {each.name: each for each in given}
        try:
            if own.pop("TEMPLATE", None):
                own["IMAGE"] = await picture(first, asked.template)
        except _FAILED as error:
            log.warning("template %s is not copied: %s", asked.template, error)
            pool.metrics.copied("asked", "failed")
        else:
            placed = [first.server.grpc]
            copies += await spread(pool, own.values(), placed, asked.copies - 1, "asked", timeout)
    return json.dumps(result | {"copies": copies})


async def spread(
    pool: Pool,
    tensors: Iterable[Tensor],
    taken: Sequence[str],
    count: int,
    reason: str,
    timeout: float | None = None,
) -> int:
    """Register a template on some more workers at the same time; how many have done so.

    Args:
        pool: the workers.
        tensors: of the request.
        taken: workers that are left out.
        count: how many more; as many as there are, if these are fewer.
        reason: for the metrics, asked or hot.
        timeout: seconds for each.
    """
    given = list(tensors)
    request = _request(given)
    asked = peek("templates", given)
    choices: list[Choice] = []
    for _ in range(count):
        names = [*taken, *(choice.worker for choice in choices)]
        try:
            choices.append(pool.book.choose(asked, time.monotonic(), avoid=names))
        except NoWorker:
            break

    async def one(choice: Choice) -> bool:
        try:
            await pool.send_to(choice, asked, lambda member: member.infer(request, timeout))
        except _FAILED as error:
            log.warning("template %s is not copied to %s: %s", asked.template, choice.worker, error)
            pool.metrics.copied(reason, "failed")
            return False
        log.info("template %s is copied to %s", asked.template, choice.worker)
        pool.metrics.copied(reason, "done")
        return True

    return sum(await asyncio.gather(*map(one, choices)))


async def picture(member: Member, template: str) -> Tensor:
    """A template's picture: IMAGE as a request has it.

    Raises:
        grpc.aio.AioRpcError: the worker does not know it, or is gone.
        wire.Malformed: it answers something else.
    """
    asked = wire.request_of("templates", {"ACTION": "picture", "TEMPLATE": template})
    answer = await member.call("ModelInfer", asked, FETCHES_WITHIN_S)
    found = wire.output(answer, "IMAGE")
    if found is None:
        raise wire.Malformed("it has no IMAGE")
    return found


def _request(tensors: Iterable[Tensor]) -> bytes:
    data = wire.request_of("templates", {})
    for each in tensors:
        if each.data is not None:
            datatype = each.datatype or _DTYPES.get(each.name, "BYTES")
            data = wire.with_tensor(data, each, datatype)
    return data

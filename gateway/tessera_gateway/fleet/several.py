"""Requests that are not for one worker of the router's choice: jobs stick to theirs, and templates
are listed and evicted everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import grpc

from tessera_gateway.fleet import wire
from tessera_gateway.fleet.book import SLOW_S, NoWorker
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.pool import Member, Pool

T = TypeVar("T")
CANCEL_WITHIN_S = 5.0
COMES_WITHIN_S = 300.0
"""A job that is to be cancelled may wait for so long before its worker knows it."""
_AGAIN_S = 0.5


async def by_job(
    pool: Pool,
    job: str,
    send: Callable[[Member], Awaitable[T]],
    unknown: Callable[[T | Exception], bool],
) -> T:
    """Ask the worker of a job, or all until one knows it: another router may have sent it there.

    Args:
        pool: the workers.
        job: its id.
        send: sends the request.
        unknown: whether an answer or error says that the job is not known.

    Raises:
        NoWorker: there is none.
    """
    own = pool.of(job)
    members = [own] if own else pool.live()
    if not members:
        raise NoWorker("no worker of the fleet is ready")
    for member in members[:-1]:
        try:
            answer = await send(member)
        except grpc.aio.AioRpcError as error:
            if not unknown(error):
                raise
            continue
        if not unknown(answer):
            return answer
    return await send(members[-1])


async def cancel(member: Member, job: str) -> None:
    """Tell a worker that nobody waits for a picture any more. An edit that waits in Triton's queue
    is not known to it yet, so this goes on for some minutes.
    """
    request = wire.request_of("jobs", {"ACTION": "cancel", "JOB_ID": job})
    until = time.monotonic() + COMES_WITHIN_S
    with contextlib.suppress(grpc.aio.UsageError):  # the connection has been closed meanwhile
        while True:
            try:
                await member.call("ModelInfer", request, CANCEL_WITHIN_S)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND or time.monotonic() > until:
                    return
            await asyncio.sleep(_AGAIN_S)


async def everywhere(pool: Pool, peek: Peek) -> str:
    """List or evict templates on every worker; RESULT of the answer.

    Raises:
        grpc.aio.AioRpcError: every worker's answer is an error; this is the first one's.
        NoWorker: there is none, or a template that is evicted may still be on one.
    """
    texts = {"ACTION": peek.action} | ({"TEMPLATE": peek.template} if peek.template else {})
    if copying := pool.copying.get(peek.template):  # else it would come back
        await asyncio.wait({copying})
    members = pool.live()
    if not members:
        raise NoWorker("no worker of the fleet is ready")
    answers = await _answers(members, wire.request_of("templates", texts), SLOW_S)
    if peek.action == "evict":
        _note_evicted(pool, peek.template, answers)
    texts_of = [wire.first_text(each) for each in answers.values() if isinstance(each, bytes)]
    if not texts_of:
        raise next(each for each in answers.values() if isinstance(each, BaseException))
    results = [json.loads(text) for text in texts_of]
    return json.dumps(listed(results) if peek.action == "list" else evicted(results))


async def evicted_elsewhere(pool: Pool, peek: Peek, within: float) -> Member:
    """Evict a template on all workers but one that has it, which is left for the caller to ask.

    Args:
        pool: the workers.
        peek: the request.
        within: seconds for a copy that is under way, then for the workers, and then for the one
            that is left, which is asked after all if another one may keep the template.

    Raises:
        NoWorker: there is none, or the template may still be on one.
    """
    if copying := pool.copying.get(peek.template):
        await asyncio.wait({copying}, timeout=within)
    knowing = pool.book.knowing(peek.template, time.monotonic())
    own = pool.members[knowing[0]] if knowing else pool.first_now()
    request = wire.request_of("templates", {"ACTION": "evict", "TEMPLATE": peek.template})
    others = [member for member in pool.live() if member is not own]
    answers = await _answers(others, request, within)
    try:
        _note_evicted(pool, peek.template, {**answers, own.server.grpc: b""})
    except NoWorker:
        await _answers([own], request, within)
        raise
    return own


async def _answers(
    members: Sequence[Member], request: bytes, within: float
) -> dict[str, bytes | BaseException]:
    """What each worker answers, or its error, by its name."""
    calls = (member.call("ModelInfer", request, within) for member in members)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return dict(zip((member.server.grpc for member in members), answers, strict=True))


def _note_evicted(pool: Pool, template: str, answers: Mapping[str, bytes | BaseException]) -> None:
    """Note that a template is gone where a worker has said so, or that it does not know it.

    Raises:
        NoWorker: it may still be on a worker that failed, or that knows it and was not asked.
    """
    gone = {name for name, answer in answers.items() if _is_gone(answer)}
    pool.book.evict(template, time.monotonic(), gone)
    kept = [
        name
        for name, entry in sorted(pool.book.workers.items())
        if name not in gone and (name in answers or entry.knows(template))
    ]
    if kept:
        raise NoWorker(f"template {template} may still be on workers that failed: {kept}")


def _is_gone(answer: bytes | BaseException) -> bool:
    if isinstance(answer, grpc.aio.AioRpcError):  # of an unknown template
        return bool(answer.code() == grpc.StatusCode.INVALID_ARGUMENT)
    return isinstance(answer, bytes)


async def gathered(
    pool: Pool, send: Callable[[Member], Awaitable[T]], failed: type[Exception]
) -> list[T]:
    """The answers of all workers that answer; waits for a first one while there is none.

    Raises:
        NoWorker: there is none.
        Exception: of the type `failed`; no worker answers, and this is the first one's error.
    """
    await pool.first()
    answers = await asyncio.gather(*map(send, pool.live()), return_exceptions=True)
    for error in (each for each in answers if isinstance(each, BaseException)):
        if not isinstance(error, failed):
            raise error
    fine = [each for each in answers if not isinstance(each, BaseException)]
    if not fine:
        raise next(each for each in answers if isinstance(each, BaseException))
    return fine


def evicted(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What was evicted of one template, on all workers."""
    return {**results[0], "bytes": sum(result["bytes"] for result in results)}


def listed(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The templates of all workers, each once, with every recording that any of them has, and how
    many workers know it.
    """
    templates: dict[str, dict[str, Any]] = {}
    for each in (template for result in results for template in result["templates"]):
        known = templates.setdefault(each["template"], {**each, "recordings": [], "copies": 0})
        known["copies"] += 1
        known["recordings"] += [r for r in each["recordings"] if r not in known["recordings"]]
    memory = _summed(result["memory"] for result in results)
    reads = memory["hits"] + memory["misses"]
    memory["hit_rate"] = round(memory["hits"] / reads, 4) if reads else None
    return {
        "templates": list(templates.values()),
        "disk": _summed(result["disk"] for result in results),
        "memory": memory,
    }


def _summed(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for each in counts:
        for name, value in each.items():
            total[name] = (total.get(name) or 0) + (value or 0)
    return total

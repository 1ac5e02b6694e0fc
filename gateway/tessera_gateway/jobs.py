"""Jobs over plain HTTP: how far one is, its end, and its news as events.

Whoever knows a job's id may watch and cancel it: ids that the gateway makes are random.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from tessera.contract import MAX_JOB_ID, JobStatus
from tessera.errors import TesseraError, UnknownJob
from tessera_client import Preview
from tessera_gateway.auth import Authenticated
from tessera_gateway.documentation import EVENT, errors
from tessera_gateway.errors import api_error
from tessera_gateway.pictures import base64_of, encode
from tessera_gateway.sse import PING, PING_S, EventStream, event
from tessera_gateway.state import Gateway, gateway_of

router = APIRouter(prefix="/v1/jobs", tags=["Jobs"])
POLL_S = 0.1
WAITING_POLL_S = 0.5
"""Of a job that waits for its first step: many may wait."""

JobId = Annotated[str, Path(pattern=r"^[!-~]+$", max_length=MAX_JOB_ID, description="Its id.")]
_ERRORS = errors(400, 401, 404, 503)
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events.", "content": {"text/event-stream": {"schema": EVENT}}}
}


@router.get("/{job_id}", responses=_ERRORS)
async def status(request: Request, caller: Authenticated, job_id: JobId) -> dict[str, Any]:
    """How far a job is: phase, steps, place in the queue, estimated seconds left."""
    gateway = gateway_of(request)
    return asdict(await _status(gateway, job_id, gateway.client.status))


@router.delete("/{job_id}", responses=_ERRORS)
async def cancel(request: Request, caller: Authenticated, job_id: JobId) -> dict[str, Any]:
    """Cancel a job; it frees its place at the next step."""
    return asdict(await gateway_of(request).client.cancel(job_id))


@router.get("/{job_id}/events", responses=_EVENTS | _ERRORS, response_class=Response)
async def events(
    request: Request,
    caller: Authenticated,
    job_id: JobId,
    previews: Annotated[bool, Query(description="Whether to show the picture so far.")] = False,
) -> Response:
    """A job's news until it has ended: `status`, and `preview` if asked for. Closing this
    connection does not cancel the job.
    """
    gateway = gateway_of(request)
    first = await _status(gateway, job_id, gateway.client.status)
    return EventStream(_events(gateway, first, previews))


async def _status(
    gateway: Gateway, job_id: str, ask: Callable[[str], Awaitable[JobStatus]]
) -> JobStatus:
    """Of a job that the server knows, or that is on its way to it."""
    try:
        return await ask(job_id)
    except UnknownJob:
        if not gateway.draws(job_id):
            raise
        return JobStatus(job_id, "queued", 0, 0, False, 0.0, None, None)


async def _events(gateway: Gateway, news: JobStatus, previews: bool) -> AsyncIterator[bytes]:
    told: JobStatus | None = None
    shown, quiet_since = 0, time.monotonic()
    while True:
        if told is None or _state(told) != _state(news):
            yield event("status", asdict(news))
            told, quiet_since = news, time.monotonic()
        elif time.monotonic() - quiet_since >= PING_S:
            yield PING
            quiet_since = time.monotonic()
        if news.ended:
            return
        if previews and news.step > shown:
            preview = await _preview(gateway, news.job_id)
            if preview and preview.step > shown:
                shown = preview.step
                yield await gateway.in_thread(partial(_shown, preview))
        await asyncio.sleep(WAITING_POLL_S if news.phase == "queued" else POLL_S)
        try:
            news = await _status(gateway, news.job_id, gateway.statuses.get)
        except TesseraError as error:
            yield event("error", {"error": api_error(error).content})
            return


def _state(status: JobStatus) -> tuple[object, ...]:
    """What makes a status news."""
    return status.phase, status.step, status.place, status.cancelled


async def _preview(gateway: Gateway, job_id: str) -> Preview | None:
    try:
        return await gateway.previews.get(job_id)
    except TesseraError:  # it has ended meanwhile, or its bundle has none
        return None


def _shown(preview: Preview) -> bytes:
    file = encode(Image.fromarray(preview.image))
    content = {"step": preview.step, "steps": preview.steps, "b64_json": base64_of(file)}
    return event("preview", content)

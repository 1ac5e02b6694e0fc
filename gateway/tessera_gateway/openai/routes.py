"""The routes of OpenAI's Images API."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tessera_client import ServedBundle
from tessera_gateway.auth import Authenticated, Caller
from tessera_gateway.drawing import draw_all, until_gone
from tessera_gateway.openai import documentation as d
from tessera_gateway.openai.answers import answer
from tessera_gateway.openai.orders import Order, check_model, edit, generation
from tessera_gateway.openai.reading import read_edit, read_generation
from tessera_gateway.openai.schemas import PictureFields
from tessera_gateway.openai.streams import EventSource
from tessera_gateway.sse import EventStream
from tessera_gateway.state import Gateway, gateway_of

router = APIRouter(prefix="/v1", tags=["OpenAI images"])
JOBS = "x-tessera-jobs"
"""Header with the ids of a stream's jobs."""


@router.get("/models", **d.MODELS)
async def models(request: Request, caller: Authenticated) -> dict[str, Any]:
    """The models that `model` may name: the bundle that is served."""
    return {"object": "list", "data": [_model(await gateway_of(request).bundle())]}


@router.get("/models/{model}", **d.MODEL)
async def model(request: Request, caller: Authenticated, model: str) -> dict[str, Any]:
    """One model, with the LoRAs that `tessera.loras` may name."""
    gateway = gateway_of(request)
    bundle = await gateway.bundle()
    check_model(model, bundle)
    content = _model(bundle)
    content["tessera"]["loras"] = [vars(a) for a in await gateway.client.adapters() if not a.word]
    return content


@router.post("/images/generations", **d.GENERATIONS)
async def generations(request: Request, caller: Authenticated) -> Response:
    """Draw pictures of a prompt."""
    fields, gateway = await read_generation(request), gateway_of(request)
    bundle = await gateway.bundle()
    check_model(fields.model, bundle)
    work = partial(generation, fields, fields.tessera, bundle, gateway.settings.max_pixels)
    return await _answer(request, caller, fields, await gateway.in_thread(work))


@router.post("/images/edits", **d.EDITS)
async def edits(request: Request, caller: Authenticated) -> Response:
    """Edit a picture: where the mask is transparent, or all of it without a mask."""
    sent, gateway = await read_edit(request), gateway_of(request)
    bundle = await gateway.bundle()
    check_model(sent.fields.model, bundle)
    work = partial(edit, sent, bundle, gateway.settings.max_pixels)
    return await _answer(request, caller, sent.fields, await gateway.in_thread(work))


def _model(bundle: ServedBundle) -> dict[str, Any]:
    content = {"id": bundle.name, "object": "model", "created": 0, "owned_by": "tessera"}
    return {**content, "tessera": dict(vars(bundle))}


async def _answer(
    request: Request, caller: Caller, fields: PictureFields, order: Order
) -> Response:
    gateway = gateway_of(request)
    for drawing in order.drawings:
        drawing.options["priority"] = caller.key.priority
    if fields.stream:
        return _stream(gateway, caller, order)
    with caller.turn(len(order.drawings)):
        results = await until_gone(request, draw_all(gateway, order.drawings))

    def keep(data: bytes) -> str:
        name = gateway.kept.put(data, order.form.media_type)
        return str(request.url_for("picture", name=name))

    metadata = gateway.settings.metadata
    work = partial(answer, order, results, metadata=metadata, keep=keep)
    return Response(await gateway.in_thread(work), media_type="application/json")


def _stream(gateway: Gateway, caller: Caller, order: Order) -> Response:
    source, counted = EventSource(gateway, order), ExitStack()
    counted.enter_context(caller.turn(len(order.drawings)))  # now: a limit is no event
    work = gateway.start(source.draw())
    work.add_done_callback(lambda task: counted.close())
    headers = {JOBS: " ".join(drawing.job_id for drawing in order.drawings)}
    return EventStream(source.events(), headers=headers, work=work)

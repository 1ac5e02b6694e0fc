"""The routes of `/sdapi/v1`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tessera_gateway.auth import Caller
from tessera_gateway.drawing import until_gone
from tessera_gateway.sdapi import lists, samplers
from tessera_gateway.sdapi.answers import answer
from tessera_gateway.sdapi.errors import RESPONSES, DetailRoute
from tessera_gateway.sdapi.fields import Img2Img, Txt2Img
from tessera_gateway.sdapi.orders import read_order
from tessera_gateway.sdapi.reading import Known, Settings, documented, read_body
from tessera_gateway.sdapi.tasks import Tasks, progress
from tessera_gateway.state import gateway_of

router = APIRouter(
    prefix="/sdapi/v1",
    tags=["stable-diffusion-webui"],
    route_class=DetailRoute,
    responses=RESPONSES,
)
_DRAWN = {"prompt": "a large red circle at the left <lora:night:0.8>", "steps": 20}
_EDITED = {"prompt": "a red circle", "init_images": ["iVBORw0KGgo..."], "denoising_strength": 0.75}


@router.post("/txt2img", openapi_extra=documented(Txt2Img, _DRAWN))
async def txt2img(request: Request, caller: Known) -> Response:
    """Draw pictures of a prompt."""
    return await _drawn(request, caller, await read_body(request, Txt2Img))


@router.post("/img2img", openapi_extra=documented(Img2Img, _EDITED))
async def img2img(request: Request, caller: Known) -> Response:
    """Edit a picture: where the mask is white, or all of it without a mask."""
    return await _drawn(request, caller, await read_body(request, Img2Img))


async def _drawn(request: Request, caller: Caller, sent: Txt2Img) -> Response:
    gateway = gateway_of(request)
    bundle = await gateway.bundle()
    work = partial(read_order, sent, bundle, gateway.settings.max_pixels)
    order = await gateway.in_thread(work)
    for drawing in order.drawings:
        drawing.options["priority"] = caller.key.priority
    tasks = _tasks(request)
    with (
        caller.turn(len(order.drawings), "batch_size times n_iter"),
        tasks.running(caller.key.name, order.drawings) as task,
    ):
        results = await until_gone(request, task.drawn(gateway))
    writing = partial(answer, order, results, metadata=gateway.settings.metadata)
    return Response(await gateway.in_thread(writing), media_type="application/json")


@router.get("/progress")
async def how_far(
    request: Request, caller: Known, skip_current_image: bool = False
) -> dict[str, Any]:
    """How far the oldest of the caller's requests is, with its picture so far."""
    tasks = _tasks(request).of(caller.key.name)
    return await progress(gateway_of(request), tasks, image=not skip_current_image)


@router.post("/interrupt")
async def interrupt(request: Request, caller: Known) -> dict[str, Any]:
    """End all requests of the caller; they answer with the pictures that are ready."""
    gateway, tasks = gateway_of(request), _tasks(request).of(caller.key.name)
    await asyncio.gather(*(task.interrupt(gateway) for task in tasks))
    return {}


@router.post("/skip")
async def skip(request: Request, caller: Known) -> None:
    """End the oldest request of the caller: all of its pictures are drawn at once."""
    for task in _tasks(request).of(caller.key.name)[:1]:
        await task.interrupt(gateway_of(request))


@router.get("/options")
async def options(request: Request, caller: Known) -> dict[str, Any]:
    """The settings that mean something here."""
    return lists.options(await gateway_of(request).bundle())


@router.post("/options", openapi_extra=documented(Settings, {"sd_model_checkpoint": "demo"}))
async def set_options(request: Request, caller: Known) -> None:
    """Accepts the checkpoint that is served; other settings have no effect."""
    settings = await read_body(request, Settings)
    if settings.sd_model_checkpoint is not None:
        bundle = await gateway_of(request).bundle()
        lists.check_checkpoint("sd_model_checkpoint", settings.sd_model_checkpoint, bundle)


@router.get("/sd-models")
async def sd_models(request: Request, caller: Known) -> list[dict[str, Any]]:
    """Checkpoints: the bundle that is served."""
    return lists.checkpoints(await gateway_of(request).bundle())


@router.get("/loras")
async def loras(request: Request, caller: Known) -> list[dict[str, Any]]:
    """LoRAs that prompts may name."""
    return lists.loras(await gateway_of(request).client.adapters())


@router.get("/samplers")
async def list_samplers(request: Request, caller: Known) -> list[dict[str, Any]]:
    """Values of `sampler_name`."""
    return samplers.samplers((await gateway_of(request).bundle()).schedulers)


@router.get("/schedulers")
async def list_schedulers(caller: Known) -> list[dict[str, Any]]:
    """Values of `scheduler`."""
    return samplers.schedulers()


@router.get("/upscalers")
@router.get("/latent-upscale-modes")
@router.get("/sd-vae")
@router.get("/sd-modules")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/prompt-styles")
async def nothing(caller: Known) -> list[dict[str, Any]]:
    """Lists that are empty here."""
    return []


@router.get("/embeddings")
async def embeddings(request: Request, caller: Known) -> dict[str, Any]:
    """Textual inversions."""
    return lists.embeddings(await gateway_of(request).client.adapters())


@router.get("/scripts")
async def scripts(caller: Known) -> dict[str, list[str]]:
    """Scripts that `alwayson_scripts` may name."""
    return {"txt2img": ["controlnet"], "img2img": ["controlnet"]}


@router.post("/refresh-checkpoints")
@router.post("/refresh-loras")
@router.post("/refresh-vae")
async def refresh(caller: Known) -> None:
    """Nothing to do: lists are always of now."""


def _tasks(request: Request) -> Tasks:
    state = request.app.state
    if not hasattr(state, "sdapi"):
        state.sdapi = Tasks()
    tasks: Tasks = state.sdapi
    return tasks

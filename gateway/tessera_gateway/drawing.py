"""Pictures that a request asks for: drawn by the SDK, all at once, as long as its caller is there.

Every API that draws uses `draw_all` (or `draw`) inside `until_gone`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from starlette.requests import Request

from tessera.contract import RANDOM_SEEDS
from tessera.errors import InvalidInput
from tessera.types import Array
from tessera_client import Preview, Result
from tessera_client.messages import EditOptions
from tessera_client.orders import edit, generation
from tessera_gateway.cancelling import cancel_job
from tessera_gateway.errors import ApiError
from tessera_gateway.state import Gateway, gateway_of

log = logging.getLogger("tessera_gateway")
T = TypeVar("T")
MOMENT_S = 0.5
"""How long the others of a request go on after one has failed."""
REFUSED_S = 10.0
"""And after one was refused: the others' refusals are on their way, but a busy server is slow."""
GONE = 499
"""Status of an answer that nobody reads, in the log only."""


@dataclass(frozen=True)
class Drawing:
    """A picture to be drawn.

    Attributes:
        prompt: what it shall show.
        job_id: to watch and cancel it by.
        options: as the SDK takes them; of a generation, without those of edits.
        image: of an edit, (h, w, 3) of uint8; `None` if `options` name a template.
        mask: of an edit, (h, w) of uint8; `None` for a generation, and for a template that is
            edited as a whole.
    """

    prompt: str
    job_id: str
    options: EditOptions
    image: Array | None = None
    mask: Array | None = None

    @property
    def edits(self) -> bool:
        """Whether it is an edit."""
        return self.mask is not None or self.options.get("template") is not None


def numbered(drawing: Drawing, count: int) -> list[Drawing]:
    """So many drawings of one kind, with seeds and job ids that count up. Work for a thread.

    Raises:
        ApiError: the images of its ControlNets do not fit together.
    """
    _check_controls(drawing)
    seed = drawing.options.get("seed")
    first = secrets.randbelow(RANDOM_SEEDS - count) if seed is None else seed
    several = []
    for number in range(count):
        options = drawing.options.copy()
        options["seed"] = first + number
        job_id = f"{drawing.job_id}-{number + 1}" if count > 1 else drawing.job_id
        several.append(dataclasses.replace(drawing, job_id=job_id, options=options))
    return several


def _check_controls(drawing: Drawing) -> None:
    """See whether the images of a drawing's ControlNets can be sent together. The SDK knows: what
    it would send is built, which takes long enough to be left out where they have one size.

    Raises:
        ApiError: they cannot.
    """
    prompt, options = drawing.prompt, cast(Any, drawing.options)
    if len({np.shape(control.image) for control in options.get("controls", ())}) < 2:
        return
    try:
        if drawing.edits:
            wish = edit(drawing.image, drawing.mask, prompt, options)
        else:
            wish = generation(prompt, options)
        wish.order(drawing.job_id)
    except (TypeError, ValueError) as error:
        raise ApiError(400, str(error), "invalid_value", param="tessera.controls") from None


async def draw(
    gateway: Gateway, drawing: Drawing, on_preview: Callable[[Preview], None] | None = None
) -> Result:
    """Draw one picture; a task that is cancelled meanwhile cancels the job, too.

    Raises:
        TesseraError: see `tessera_client.AsyncClient.generate`.
    """
    try:
        with gateway.drawing(drawing.job_id):
            result = await _ask(gateway, drawing, on_preview)
    except asyncio.CancelledError:
        gateway.start(cancel_job(gateway, drawing.job_id))  # for longer than the SDK tries
        raise
    info, prompt = result.info, drawing.prompt if gateway.settings.log_prompts else "..."
    log.info(
        "%s: %s, %d x %d, %d steps, %.0f ms, prompt %r",
        info.job_id,
        "edit" if drawing.edits else "generation",
        info.width,
        info.height,
        info.steps,
        info.total_ms,
        prompt,
    )
    return result


async def _ask(
    gateway: Gateway, drawing: Drawing, on_preview: Callable[[Preview], None] | None
) -> Result:
    options: Any = drawing.options
    more: Any = {"job_id": drawing.job_id, "on_preview": on_preview, **options}
    if not drawing.edits:
        return await gateway.client.generate(drawing.prompt, **more)
    return await gateway.client.edit(drawing.image, drawing.mask, drawing.prompt, **more)


async def draw_all(gateway: Gateway, drawings: Sequence[Drawing]) -> list[Result]:
    """Draw pictures at once, so that they share ticks. The first error ends the others.

    Raises:
        TesseraError: see `draw`.
    """
    return await all_of(draw(gateway, drawing) for drawing in drawings)


async def all_of(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of works that run at once. The first error is raised when the others are over:
    a moment later they are cancelled. What one is refused for, all are, and a refused job cannot
    be cancelled: it would be looked for in vain.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if left:
            refused = any(isinstance(task.exception(), InvalidInput) for task in done)
            await asyncio.wait(left, timeout=REFUSED_S if refused else MOMENT_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return [task.result() for task in tasks]


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller closes the connection.

    The request's body has to be read before.

    Raises:
        ApiError: the caller has gone.
    """
    gateway = gateway_of(request)
    task, gone = gateway.start(work), gateway.start(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(GONE, "the caller closed the connection", "client_gone")
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

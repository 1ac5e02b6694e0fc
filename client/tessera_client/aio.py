"""The asyncio client: `Client` with `await`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from tessera.contract import JobStatus
from tessera.errors import InvalidInput
from tessera_client.adapters import Adapter, adapters_call, read_adapters
from tessera_client.aio_connection import AsyncConnection
from tessera_client.bundle import ServedBundle, bundle_call, read_bundle
from tessera_client.capabilities import Capabilities, busy_of, load_call
from tessera_client.checks import seconds_of
from tessera_client.client import AT_ONCE, PUBLIC_MODELS
from tessera_client.connection import JOB_TIMEOUT
from tessera_client.edits import Mask, Rectangle
from tessera_client.messages import (
    ControlList,
    EditManyOptions,
    EditOptions,
    GenerateOptions,
    Health,
    LoraList,
    ManyOptions,
    job_call,
    read_json,
    read_status,
)
from tessera_client.orders import Wish, edit, generation, numbered, seeds_of
from tessera_client.pictures import Picture
from tessera_client.previews import (
    News,
    OnPreview,
    OnProgress,
    Preview,
    preview_call,
    read_preview,
)
from tessera_client.repainting import Repainted, repaint_of
from tessera_client.results import Result
from tessera_client.templates import (
    Recorded,
    evict_call,
    list_call,
    read_answer,
    register_call,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AsyncClient(AsyncConnection):
    """`Client` for asyncio, with the same arguments, results and errors. Callbacks are called in
    the event loop, and may be coroutine functions, which are awaited.
    """

    async def generate(
        self,
        prompt: str,
        *,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Result:
        """See `Client.generate`; cancelling the awaiting task cancels the job on the server,
        too.
        """
        wish = generation(prompt, options)
        return await self._one(wish, job_id, timeout, on_progress, on_preview)

    async def edit(
        self,
        image: Picture | None,
        mask: Mask,
        prompt: str,
        *,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        **options: Unpack[EditOptions],
    ) -> Result:
        """See `Client.edit`; cancelling the awaiting task cancels the job on the server, too."""
        wish = edit(image, mask, prompt, options)
        return await self._one(wish, job_id, timeout, on_progress, on_preview)

    def generate_many(
        self,
        prompt: str,
        *,
        n: int | None = None,
        seed: int | Sequence[int] | None = None,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[ManyOptions],
    ) -> AsyncIterator[Result]:
        """See `Client.generate_many`; for `async for`."""
        return self._many(generation(prompt, options), n, seed, job_id, timeout, on_progress)

    def edit_many(
        self,
        image: Picture | None,
        mask: Mask,
        prompt: str,
        *,
        n: int | None = None,
        seed: int | Sequence[int] | None = None,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[EditManyOptions],
    ) -> AsyncIterator[Result]:
        """See `Client.edit_many`; for `async for`."""
        wish = edit(image, mask, prompt, options)
        return self._many(wish, n, seed, job_id, timeout, on_progress)

    async def repaint(
        self,
        image: Picture,
        boxes: Sequence[Rectangle],
        prompt: str | Sequence[str],
        *,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[EditOptions],
    ) -> Repainted:
        """See `Client.repaint`."""
        self._check_open()
        asked = repaint_of(image, boxes, prompt, options, job_id)
        drawn = self._drawn(asked.wishes, timeout, on_progress)
        return asked.done([result async for result in drawn])

    async def _one(
        self,
        wish: Wish,
        job_id: str | None,
        timeout: float | None,
        on_progress: OnProgress | None,
        on_preview: OnPreview | None = None,
    ) -> Result:
        self._check_open()
        seconds = self._timeout if timeout is None else seconds_of("timeout", timeout)
        job = uuid.uuid4().hex if job_id is None else job_id
        news = News(job, on_progress, on_preview, awaits=True)
        order = wish.order(job, await self.bundle() if wish.needs_bundle else None)
        async with self._reporting(job, news), self._cancelling(job):
            return order.result(await self._ask(order.call, seconds, job))

    def _many(
        self,
        wish: Wish,
        n: int | None,
        seed: int | Sequence[int] | None,
        job_id: str | None,
        timeout: float | None,
        on_progress: OnProgress | None,
    ) -> AsyncIterator[Result]:
        self._check_open()
        if timeout is not None:
            seconds_of("timeout", timeout)
        first = uuid.uuid4().hex if job_id is None else job_id
        News(first, on_progress, awaits=True)
        wishes = {job: wish.with_seed(s) for job, s in numbered(first, seeds_of(n, seed))}
        return self._drawn(wishes, timeout, on_progress)

    async def _drawn(
        self, wishes: dict[str, Wish], timeout: float | None, on_progress: OnProgress | None
    ) -> AsyncIterator[Result]:
        """The pictures of wishes by their job's id, in order."""
        room = asyncio.Semaphore(AT_ONCE)

        async def one(job: str, wish: Wish) -> Result:
            async with room:
                return await self._one(wish, job, timeout, on_progress)

        tasks = [asyncio.ensure_future(one(job, wish)) for job, wish in wishes.items()]
        try:
            while tasks:
                await tasks[0]
                yield tasks.pop(0).result()  # not kept once it is given out
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def status(self, job_id: str) -> JobStatus:
        """See `Client.status`."""
        return read_status(await self._ask(job_call("status", job_id), JOB_TIMEOUT))

    async def preview(self, job_id: str, decoder: str | None = None) -> Preview | None:
        """See `Client.preview`."""
        return read_preview(await self._ask(preview_call(job_id, decoder), JOB_TIMEOUT))

    async def cancel(self, job_id: str) -> JobStatus:
        """See `Client.cancel`."""
        return read_status(await self._ask(job_call("cancel", job_id), JOB_TIMEOUT))

    async def adapters(self) -> list[Adapter]:
        """See `Client.adapters`."""
        return read_adapters(await self._ask(adapters_call()))

    async def bundle(self) -> ServedBundle:
        """See `Client.bundle`."""
        return read_bundle(await self._ask(bundle_call()))

    async def capabilities(self) -> Capabilities:
        """See `Client.capabilities`."""
        bundle, loras = await self.bundle(), await self.adapters()
        try:
            busy = busy_of(read_json(await self._ask(load_call(), JOB_TIMEOUT)))
        except InvalidInput:  # an older server does not tell, or the key may not ask
            busy = None
        return Capabilities(bundle, loras, busy)

    async def register_template(
        self,
        image: Picture | None = None,
        *,
        template: str | None = None,
        steps: int | None = None,
        scheduler: str | None = None,
        copies: int | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        prompt_syntax: str | None = None,
        clip_skip: int | None = None,
        loras: LoraList = (),
        controls: ControlList = (),
        timeout: float | None = None,
    ) -> Recorded:
        """See `Client.register_template`."""
        given = {"template": template, "steps": steps, "scheduler": scheduler, "copies": copies}
        given |= {"prompt": prompt, "negative_prompt": negative_prompt, "clip_skip": clip_skip}
        given["prompt_syntax"] = prompt_syntax
        call = register_call(image, loras=loras, controls=controls, **given)
        return Recorded(**read_answer(await self._ask(call, timeout)))

    async def templates(self) -> dict[str, Any]:
        """See `Client.templates`."""
        return read_answer(await self._ask(list_call()))

    async def evict_template(self, template: str) -> int:
        """See `Client.evict_template`."""
        return int(read_answer(await self._ask(evict_call(template)))["bytes"])

    async def health(self) -> Health:
        """See `Client.health`."""
        self._check_open()
        server = await self._transport.ready()
        return Health(server, {m: await self._transport.ready(m) for m in PUBLIC_MODELS})

"""The asyncio client: `Client` with `await`."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self, Unpack

from tessera.contract import JobStatus
from tessera.errors import TesseraError, TimedOut, Unavailable, UnknownJob
from tessera.types import Array
from tessera_client.adapters import Adapter, adapters_call, read_adapters
from tessera_client.aio_transport import AsyncTransport, connect_async
from tessera_client.client import COMES_WITHIN_S, JOB_TIMEOUT, POLL_S, PUBLIC_MODELS, RETRY_S
from tessera_client.edits import Mask, edit_call
from tessera_client.messages import (
    EditOptions,
    GenerateOptions,
    Health,
    Result,
    generate_call,
    job_call,
    read_result,
    read_status,
)
from tessera_client.pictures import Picture
from tessera_client.templates import (
    Recorded,
    evict_call,
    list_call,
    read_answer,
    register_call,
)
from tessera_client.wire import Call


class AsyncClient:
    """`Client` for asyncio, with the same arguments, results and errors; usable in an `async with`
    statement.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        *,
        timeout: float = 300.0,
        retries: int = 2,
        transport: AsyncTransport | None = None,
    ) -> None:
        self._transport = transport or connect_async(url)
        self._timeout = timeout
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def generate(
        self,
        prompt: str,
        *,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[JobStatus], None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Result:
        """See `Client.generate`; cancelling the awaiting task cancels the job on the server,
        too.
        """
        job = job_id or uuid.uuid4().hex
        return await self._picture(generate_call(prompt, job, options), job, timeout, on_progress)

    async def edit(
        self,
        image: Picture | None,
        mask: Mask,
        prompt: str,
        *,
        job_id: str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[JobStatus], None] | None = None,
        **options: Unpack[EditOptions],
    ) -> Result:
        """See `Client.edit`; cancelling the awaiting task cancels the job on the server, too."""
        job = job_id or uuid.uuid4().hex
        call = edit_call(image, mask, prompt, job, options)
        return await self._picture(call, job, timeout, on_progress)

    async def _picture(
        self,
        call: Call,
        job: str,
        timeout: float | None,
        on_progress: Callable[[JobStatus], None] | None,
    ) -> Result:
        async with self._reporting(job, on_progress), self._cancelling(job):
            return read_result(await self._ask(call, timeout, job))

    async def status(self, job_id: str) -> JobStatus:
        """See `Client.status`."""
        return read_status(await self._ask(job_call("status", job_id), JOB_TIMEOUT))

    async def cancel(self, job_id: str) -> JobStatus:
        """See `Client.cancel`."""
        return read_status(await self._ask(job_call("cancel", job_id), JOB_TIMEOUT))

    async def adapters(self) -> list[Adapter]:
        """See `Client.adapters`."""
        return read_adapters(await self._ask(adapters_call()))

    async def register_template(
        self,
        image: Picture | None = None,
        *,
        template: str | None = None,
        steps: int | None = None,
        scheduler: str | None = None,
        timeout: float | None = None,
    ) -> Recorded:
        """See `Client.register_template`."""
        call = register_call(image, template, steps, scheduler)
        return Recorded(**read_answer(await self._ask(call, timeout)))

    async def templates(self) -> dict[str, Any]:
        """See `Client.templates`."""
        return read_answer(await self._ask(list_call()))

    async def evict_template(self, template: str) -> int:
        """See `Client.evict_template`."""
        return int(read_answer(await self._ask(evict_call(template)))["bytes"])

    async def health(self) -> Health:
        """See `Client.health`."""
        server = await self._transport.ready()
        return Health(server, {m: await self._transport.ready(m) for m in PUBLIC_MODELS})

    async def _ask(
        self, call: Call, timeout: float | None = None, job: str | None = None
    ) -> dict[str, Array]:
        for number in range(self._retries + 1):
            try:
                return await self._transport.infer(call, timeout or self._timeout)
            except Unavailable as error:
                if not error.undone or number == self._retries:
                    raise
                if job:
                    await self._cancel(job)
                await asyncio.sleep(RETRY_S * 2**number)
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def _cancelling(self, job_id: str) -> AsyncIterator[None]:
        try:
            yield
        except (asyncio.CancelledError, TimedOut):
            await asyncio.shield(asyncio.ensure_future(self._cancel(job_id, COMES_WITHIN_S)))
            raise

    async def _cancel(self, job_id: str, within: float = 0.0) -> None:
        until, call = time.monotonic() + within, job_call("cancel", job_id)
        with contextlib.suppress(TesseraError):
            while True:
                try:
                    await self._transport.infer(call, JOB_TIMEOUT)
                    return
                except UnknownJob:
                    if time.monotonic() >= until:
                        return
                await asyncio.sleep(POLL_S)

    @contextlib.asynccontextmanager
    async def _reporting(
        self, job_id: str, report: Callable[[JobStatus], None] | None
    ) -> AsyncIterator[None]:
        if report is None:
            yield
            return
        over, question = asyncio.Event(), job_call("status", job_id)

        async def poll() -> None:
            """Ask for the job's status again and again; a failed question is skipped."""
            while not over.is_set():
                await asyncio.sleep(POLL_S)
                with contextlib.suppress(TesseraError):
                    report(read_status(await self._transport.infer(question, JOB_TIMEOUT)))

        task = asyncio.create_task(poll())
        try:
            yield
        finally:
            over.set()  # a library below may lose the cancellation
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()

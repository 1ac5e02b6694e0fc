"""The asyncio client: `Client` with `await`."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self, Unpack

from tessera.errors import TesseraError, TimedOut, Unavailable
from tessera_client.adapters import Adapter, adapter_inputs, read_adapters
from tessera_client.aio_transport import AsyncTransport, connect_async
from tessera_client.client import NEEDED_MODELS, POLL_S, RETRY_S, Outputs
from tessera_client.edits import Mask, Picture, edit_inputs
from tessera_client.messages import (
    EditOptions,
    GenerateOptions,
    Health,
    JobStatus,
    Result,
    generate_inputs,
    job_inputs,
    parameters_of,
    read_result,
    read_status,
)
from tessera_client.templates import (
    Recorded,
    evict_inputs,
    list_inputs,
    read_answer,
    register_inputs,
)
from tessera_client.transport import Parameters


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
        self._timeout, self._retries = timeout, retries

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
        inputs = generate_inputs(prompt, job, options)
        return await self._picture(
            "generate", inputs, job, timeout, on_progress, parameters_of(options)
        )

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
        inputs = edit_inputs(image, mask, prompt, job, options)
        return await self._picture(
            "edit", inputs, job, timeout, on_progress, parameters_of(options)
        )

    async def _picture(
        self,
        model: str,
        inputs: Outputs,
        job: str,
        timeout: float | None,
        on_progress: Callable[[JobStatus], None] | None,
        parameters: Parameters,
    ) -> Result:
        async with self._reporting(job, on_progress), self._cancelling(job):
            outputs = await self._retrying(
                lambda: self._transport.infer(
                    model, inputs, ("IMAGE", "INFO"), timeout or self._timeout, parameters
                )
            )
        return read_result(outputs)

    async def status(self, job_id: str) -> JobStatus:
        """See `Client.status`."""
        return await self._job("status", job_id)

    async def cancel(self, job_id: str) -> JobStatus:
        """See `Client.cancel`."""
        return await self._job("cancel", job_id)

    async def adapters(self) -> list[Adapter]:
        """See `Client.adapters`."""
        return read_adapters(
            await self._retrying(
                lambda: self._transport.infer(
                    "adapters", adapter_inputs(), ("RESULT",), self._timeout
                )
            )
        )

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
        inputs = register_inputs(image, template, steps, scheduler)
        return Recorded(**await self._templates(inputs, timeout))

    async def templates(self) -> dict[str, Any]:
        """See `Client.templates`."""
        return await self._templates(list_inputs())

    async def evict_template(self, template: str) -> int:
        """See `Client.evict_template`."""
        return int((await self._templates(evict_inputs(template)))["bytes"])

    async def _templates(self, inputs: Outputs, timeout: float | None = None) -> dict[str, Any]:
        limit = timeout or self._timeout
        return read_answer(
            await self._retrying(
                lambda: self._transport.infer("templates", inputs, ("RESULT",), limit)
            )
        )

    async def health(self) -> Health:
        """See `Client.health`."""
        server = await self._transport.ready()
        return Health(server, {m: await self._transport.ready(m) for m in NEEDED_MODELS})

    async def _job(self, action: str, job_id: str) -> JobStatus:
        inputs = job_inputs(action, job_id)
        return read_status(
            await self._retrying(lambda: self._transport.infer("jobs", inputs, ("RESULT",), 10.0))
        )

    async def _retrying(self, attempt: Callable[[], Awaitable[Outputs]]) -> Outputs:
        for number in range(self._retries + 1):
            try:
                return await attempt()
            except Unavailable as error:
                if not error.undone or number == self._retries:
                    raise
                await asyncio.sleep(RETRY_S * 2**number)
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def _cancelling(self, job_id: str) -> AsyncIterator[None]:
        try:
            yield
        except (asyncio.CancelledError, TimedOut):
            with contextlib.suppress(TesseraError):
                cancel = self._transport.infer(
                    "jobs", job_inputs("cancel", job_id), ("RESULT",), 5.0
                )
                await asyncio.shield(asyncio.ensure_future(cancel))
            raise

    @contextlib.asynccontextmanager
    async def _reporting(
        self, job_id: str, report: Callable[[JobStatus], None] | None
    ) -> AsyncIterator[None]:
        async def poll(tell: Callable[[JobStatus], None]) -> None:
            """Ask for the job's status again and again; a failed question is skipped."""
            while True:
                await asyncio.sleep(POLL_S)
                with contextlib.suppress(TesseraError):
                    outputs = await self._transport.infer(
                        "jobs", job_inputs("status", job_id), ("RESULT",), 5.0
                    )
                    tell(read_status(outputs))

        task = asyncio.create_task(poll(report)) if report else None
        try:
            yield
        finally:
            if task:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

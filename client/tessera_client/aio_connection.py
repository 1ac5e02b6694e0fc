"""What `AsyncClient` does for every call: `Connection` with `await`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from tessera.errors import InvalidInput, TesseraError, TimedOut, Unavailable, UnknownJob
from tessera.types import Array
from tessera_client.address import address_of
from tessera_client.aio_transport import AsyncTransport, connect_async
from tessera_client.checks import integer_of, seconds_of
from tessera_client.connection import (
    CLOSED,
    COMES_WITHIN_S,
    JOB_TIMEOUT,
    MAX_RETRIES,
    POLL_S,
    RETRY_S,
)
from tessera_client.messages import job_call
from tessera_client.previews import News
from tessera_client.wire import Call, whole

if TYPE_CHECKING:
    from typing_extensions import Self


class AsyncConnection:
    """`Connection` for asyncio, with the same arguments; usable in an `async with` statement."""

    def __init__(
        self,
        url: str = "http://localhost:8000",
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        timeout: float = 300.0,
        retries: int = 2,
        transport: AsyncTransport | None = None,
    ) -> None:
        self._timeout = seconds_of("timeout", timeout)
        self._retries = integer_of("retries", retries, 0, MAX_RETRIES)
        address = address_of(url, token=token, headers=headers, ca_file=ca_file)
        self._transport = transport or connect_async(address)
        self._closed = False

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
        """Close the connections. Every later call raises RuntimeError."""
        self._closed = True
        await self._transport.close()

    async def _ask(
        self, call: Call, timeout: float | None = None, job: str | None = None
    ) -> dict[str, Array]:
        self._check_open()
        seconds = self._timeout if timeout is None else seconds_of("timeout", timeout)
        for number in range(self._retries + 1):
            try:
                return whole(await self._transport.infer(call, seconds))
            except Unavailable as error:
                if not error.undone or number == self._retries:
                    raise
                if job:
                    await self._cancel(job)
                await asyncio.sleep(RETRY_S * 2**number)
        raise AssertionError("unreachable")

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(CLOSED)

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
    async def _reporting(self, job_id: str, news: News) -> AsyncIterator[None]:
        """See `Connection._reporting`; coroutines are awaited."""
        if not news.wanted:
            yield
            return
        over, failures, telling = asyncio.Event(), list[Exception](), asyncio.Event()

        async def poll() -> None:
            """Ask for news again and again; a failed question is skipped."""
            while not over.is_set():
                await asyncio.sleep(POLL_S)
                try:
                    answer = await self._transport.infer(news.question, JOB_TIMEOUT)
                except InvalidInput as error:
                    news.refused(error)
                    continue
                except TesseraError:
                    continue
                telling.set()
                try:
                    for awaitable in news.tell(answer):
                        await awaitable
                except Exception as error:
                    failures.append(error)
                    await self._cancel(job_id)
                    return
                telling.clear()

        task = asyncio.create_task(poll())
        try:
            yield
        except TesseraError:
            if not failures:
                raise
        except BaseException:
            task.cancel()
            raise
        finally:
            over.set()  # a library below may lose the cancellation
            if not telling.is_set():
                task.cancel()
            await asyncio.wait([task])
        if failures:
            raise failures[0]
        if not task.cancelled():
            task.result()

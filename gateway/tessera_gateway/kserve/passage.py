"""One inference on its way to Triton: checked while it comes in, given up when nobody waits."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

import aiohttp
from starlette.requests import ClientDisconnect, Request

from tessera.errors import InvalidInput
from tessera_gateway.keys import ANYONE, Key, refusal
from tessera_gateway.kserve.body import PIECE, Body
from tessera_gateway.kserve.framing import HEAD_LENGTH, Framing, read_framing
from tessera_gateway.kserve.generated import job_of, read_generate, write_generate
from tessera_gateway.kserve.head import JOB_ID, Inference, read_inference
from tessera_gateway.kserve.limits import Limits, Refused
from tessera_gateway.kserve.parameters import ranked
from tessera_gateway.kserve.paths import Target
from tessera_gateway.kserve.texts import check_texts
from tessera_gateway.kserve.upstream import Upstream
from tessera_gateway.state import gateway_of

ACTION = "ACTION"
_READ = (JOB_ID, ACTION)


class Gone(Exception):
    """The caller closed the connection; there is nobody to answer."""


class Passage:
    """One inference.

    Args:
        request: a client's.
        target: what it asks for.
        limits: how much it may bring.
        priority: highest priority that its caller has (1 is first), or `None` for any.
        key: its caller's.

    Attributes:
        job: id of the picture's job as far as it is known, or empty.
    """

    def __init__(
        self,
        request: Request,
        target: Target,
        limits: Limits,
        priority: int | None,
        key: Key = ANYONE,
    ) -> None:
        self._request = request
        self._target = target
        self._limits = limits
        self._priority = priority
        self._key = key
        self._sent = asyncio.Event()
        self._fault: Exception | None = None
        self.job = ""

    async def answer(
        self, upstream: Upstream, cancel: Callable[[str], object]
    ) -> aiohttp.ClientResponse:
        """Triton's answer, its body still to be read.

        Args:
            upstream: Triton.
            cancel: told the id of a job that nobody waits for any more.

        Raises:
            Gone: the caller is.
            InvalidInput, Refused: the request is not passed on.
        """
        content, headers = await self._content()
        asked = asyncio.ensure_future(
            upstream.send("POST", self._target.path, self._watched(content), headers)
        )
        left = asyncio.ensure_future(self._left())
        try:
            await asyncio.wait({asked, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            if not asked.done():
                asked.cancel()
                if self.job and self._fault is None:
                    cancel(self.job)
        await asyncio.wait({asked})
        if asked.cancelled():
            raise Gone
        if self._fault is None:
            return asked.result()
        if asked.exception() is None:  # Triton has answered though it did not get everything
            asked.result().close()
        raise self._fault

    async def _content(self) -> tuple[AsyncIterator[bytes], dict[str, str]]:
        framing = read_framing(self._request.headers, self._limits)
        limit = self._limits.json if framing.head is None else self._limits.body
        body = Body(self._chunks(), limit)
        text = await (body.all() if framing.head is None else body.take(framing.head))
        if self._target.kind == "generate":
            if framing.head is not None:
                raise Refused(400, "a call of generate has no binary tensors; accepted: JSON")
            return self._generate(text)
        work = partial(read_inference, self._target.model, text, self._limits)
        large = len(text) > self._limits.head
        read = await gateway_of(self._request).in_thread(work) if large else work()
        _check_length(framing, read)
        read = replace(read, parameters=ranked(read.parameters or {}, self._priority))
        read = read.named(uuid.uuid4().hex)
        head = read.to_json()
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(len(head) + read.size),
            HEAD_LENGTH: str(len(head)),
        }
        return _pieces(self._tensors(head, read, body)), headers

    def _generate(self, text: bytes) -> tuple[AsyncIterator[bytes], dict[str, str]]:
        values = ranked(read_generate(self._target.model, text, self._limits), self._priority)
        self._check_action(str(values.get(ACTION, "")))
        self.job = job_of(self._target.model, values, uuid.uuid4().hex)
        written = write_generate(values)

        async def once() -> AsyncIterator[bytes]:
            yield written

        headers = {"content-type": "application/json", "content-length": str(len(written))}
        return once(), headers

    async def _tensors(self, head: bytes, read: Inference, body: Body) -> AsyncIterator[bytes]:
        """The body that Triton gets."""
        yield head
        for number, each in enumerate(read.inputs):
            if each.data is not None:
                if each.spec.name in _READ:
                    self._note(each.spec.name, each.data[4:].decode(errors="replace"))
                yield each.data
            elif each.spec.dtype == "BYTES":
                data = await body.take(each.size)
                texts = check_texts(
                    f"inputs[{number}]", each.spec.name, data, each.shape, self._limits
                )
                self._note(each.spec.name, texts[0])
                yield data
            else:
                async for piece in body.pieces(each.size):
                    yield piece
        await body.end()

    def _note(self, name: str, text: str) -> None:
        if name == JOB_ID:
            self.job = text
        elif name == ACTION:
            self._check_action(text)

    def _check_action(self, action: str) -> None:
        reason = refusal(self._key, self._target.model, action)
        if reason:
            raise Refused(403, reason)

    async def _watched(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same; remembers why it broke off, which the sender does not tell."""
        try:
            async for piece in content:
                yield piece
        except (InvalidInput, Refused, Gone) as error:
            self._fault = error
            raise
        finally:
            self._sent.set()

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._request.stream():
                yield chunk
        except ClientDisconnect:
            raise Gone from None

    async def _left(self) -> None:
        """Ends when the caller has gone, after it sent everything."""
        await self._sent.wait()
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


def _check_length(framing: Framing, read: Inference) -> None:
    if framing.whole is None:
        return
    came = framing.whole - (framing.whole if framing.head is None else framing.head)
    if came != read.coming:
        raise InvalidInput.described(
            "the body", f"has {came} bytes of binary tensors", f"{read.coming}, as the head says"
        )


async def _pieces(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, small ones together."""
    collected = bytearray()
    async for piece in content:
        collected += piece
        if len(collected) >= PIECE:
            yield bytes(collected)
            collected.clear()
    if collected:
        yield bytes(collected)

"""KServe over HTTP: a worker is chosen by a request's bytes, which then go to its HTTP port."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import aiohttp
import grpc
import msgspec

from tessera.errors import InvalidInput
from tessera_gateway.fleet.book import NoWorker
from tessera_gateway.fleet.copies import register
from tessera_gateway.fleet.counts import merge_json
from tessera_gateway.fleet.learning import read_info
from tessera_gateway.fleet.peek import Peek, peek, tensors_in, tensors_of
from tessera_gateway.fleet.pool import GONE, Lost, Member, Pool, Seen
from tessera_gateway.fleet.several import by_job, everywhere, gathered
from tessera_gateway.fleet.wire import Tensor
from tessera_gateway.kserve.framing import HEAD_LENGTH
from tessera_gateway.kserve.limits import Refused
from tessera_gateway.kserve.upstream import Upstream

INFER = re.compile(r"/v2/models/([a-z]+)(?:/versions/1)?/(infer|generate)")
"""Paths of requests to models: the model, and infer or generate."""
_STATUS = {grpc.StatusCode.INVALID_ARGUMENT: 400, grpc.StatusCode.NOT_FOUND: 404}


class Made:
    """A whole answer, a worker's or the fleet's; what is read of `aiohttp.ClientResponse`."""

    def __init__(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.status = status
        self.headers = headers
        self.content = self
        self.body = content

    async def iter_any(self) -> AsyncIterator[bytes]:
        """The body."""
        yield self.body

    async def read(self, most: int = -1) -> bytes:
        """The body, or so many bytes of it."""
        return self.body if most < 0 else self.body[:most]

    async def __aenter__(self) -> Made:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open."""


class FleetUpstream(Upstream):
    """What `Upstream` is for one server, for a fleet.

    Args:
        pool: its workers.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__("")
        self._pool = pool

    async def send(
        self,
        method: str,
        path: str,
        body: AsyncIterator[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """See `Upstream.send`. The whole body is read before a worker is chosen."""
        content = await _whole(body)
        asked = INFER.fullmatch(path)
        try:
            if asked is None:
                member = await self._pool.first()
                return await member.upstream.send(method, path, content, headers)
            tensors, head = _read(asked[1], asked[2], content or b"", headers or {})
            found = peek(asked[1], tensors)
            if made := self._made(found, tensors):
                form = _flat if asked[2] == "generate" else partial(_result, head)
                return await _whole_answer(made, form)  # type: ignore[return-value]
            return await self._infer(found, (method, path, content, headers))
        except NoWorker as error:
            raise Refused(503, str(error)) from None
        except Lost as error:
            raise error.answer from None

    async def ask(self, path: str) -> tuple[int, bytes]:
        """See `Upstream.ask`."""
        try:
            if path.endswith("/stats"):
                return await self._statistics(path)
            member = await self._pool.first(wait=not path.endswith(("/live", "/ready")))
            return await member.upstream.ask(path)
        except NoWorker as error:
            raise Refused(503, str(error)) from None

    async def _statistics(self, path: str) -> tuple[int, bytes]:
        async def ask(member: Member) -> tuple[int, bytes]:
            return await member.upstream.ask(path)

        answers = await gathered(self._pool, ask, Refused)
        fine = [content for status, content in answers if status == 200]
        return (200, merge_json(fine)) if fine else answers[0]

    def _made(self, asked: Peek, tensors: Sequence[Tensor]) -> Awaitable[str] | None:
        """RESULT of what the fleet answers itself."""
        if asked.model == "templates" and asked.action in ("list", "evict"):
            return everywhere(self._pool, asked)
        if asked.registers and asked.copies is not None:
            return register(self._pool, asked, tensors)
        return None

    async def _infer(self, peek: Peek, request: tuple[Any, ...]) -> aiohttp.ClientResponse:
        async def pass_on(member: Member) -> aiohttp.ClientResponse:
            return await member.upstream.send(*request)

        if peek.model == "jobs" and peek.action != "load":
            return await by_job(self._pool, peek.job, pass_on, _not_found)
        if peek.model in ("jobs", "adapters"):
            return await pass_on(await self._pool.first())
        draws: Made = await self._pool.route(peek, lambda m: _answer(m, request), _seen)
        return draws  # type: ignore[return-value]  # it has what is read of an answer


async def _whole_answer(result: Awaitable[str], form: Callable[[str], Made]) -> Made:
    """What the fleet answers itself, or the error of a worker that was asked by gRPC.

    Raises:
        Refused: a value is not accepted.
    """
    try:
        return form(await result)
    except InvalidInput as error:
        raise Refused(400, str(error)) from None
    except (grpc.aio.AioRpcError, Lost) as error:
        answer = error.answer if isinstance(error, Lost) else error
        if not isinstance(answer, grpc.aio.AioRpcError):
            raise
        content = json.dumps({"error": answer.details()}).encode()
        status = _STATUS.get(answer.code(), 503)
        return Made(status, {"content-type": "application/json"}, content)


async def _answer(member: Member, request: tuple[Any, ...]) -> Made:
    """A worker's whole answer, unless it is that it cannot take the request.

    Raises:
        Lost: there is none, or it is that.
    """
    try:
        async with await member.upstream.send(*request) as answer:
            content = await answer.read()
    except Refused as error:
        raise Lost(error, gone=True) from None
    except (aiohttp.ClientError, OSError):
        raise Lost(Refused(503, GONE), gone=True) from None
    if answer.status == 503:
        sentence = str(json.loads(content).get("error", "try again later"))
        raise Lost(Refused(503, sentence), gone=False)
    return Made(answer.status, answer.headers, content)


class _Output(msgspec.Struct):
    """Of an answer; the numbers of a picture that came as JSON are not read."""

    name: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    parameters: dict[str, Any] = {}


class _Outputs(msgspec.Struct):
    outputs: list[_Output] = []


def _seen(answer: Made) -> Seen:
    if answer.status != 200:
        return Seen(fine=False)
    try:
        return Seen(drawn=read_info(_info(answer)))
    except (ValueError, TypeError, IndexError):  # msgspec's errors are ValueErrors
        return Seen()


def _info(answer: Made) -> bytes | None:
    """INFO of an answer; `None` if the caller did not ask for it."""
    at = int(answer.headers.get(HEAD_LENGTH, len(answer.body)))
    for output in msgspec.json.decode(answer.body[:at], type=_Outputs).outputs:
        size = int(output.parameters.get("binary_data_size", 0))
        if output.name == "INFO":
            if size:
                return answer.body[at + 4 : at + size]
            return str(msgspec.json.decode(output.data)[0]).encode()
        at += size
    return None


def _read(
    model: str, kind: str, content: bytes, headers: Mapping[str, str]
) -> tuple[list[Tensor], dict[str, Any]]:
    """The tensors, and the JSON of the head."""
    if kind == "generate":
        given = json.loads(content)
        return tensors_of(given), given
    length = headers.get(HEAD_LENGTH)
    size = None if length is None else int(length)
    return tensors_in(model, size, content), json.loads(content[:size])


def _not_found(answer: aiohttp.ClientResponse | Exception) -> bool:
    return not isinstance(answer, Exception) and answer.status == 404


def _wants_bytes(head: dict[str, Any]) -> bool:
    """Whether the caller wants RESULT as bytes behind JSON."""
    for output in head.get("outputs") or ():
        return bool(output.get("parameters", {}).get("binary_data", False))
    return bool((head.get("parameters") or {}).get("binary_data_output", False))


def _flat(text: str) -> Made:
    """An answer of `templates` over the generate extension, which has no tensors."""
    answer = {"model_name": "templates", "model_version": "1", "RESULT": text}
    return Made(200, {"content-type": "application/json"}, json.dumps(answer).encode())


def _result(head: dict[str, Any], text: str) -> Made:
    """An answer of `templates` to a request with such a head."""
    binary = _wants_bytes(head)
    output: dict[str, Any] = {"name": "RESULT", "datatype": "BYTES", "shape": [1, 1]}
    encoded = text.encode()
    element = len(encoded).to_bytes(4, "little") + encoded
    if binary:
        output["parameters"] = {"binary_data_size": len(element)}
    else:
        output["data"] = [text]
    answer = {"model_name": "templates", "model_version": "1", "outputs": [output]}
    said = json.dumps(answer).encode()
    if not binary:
        return Made(200, {"content-type": "application/json"}, said)
    headers = {"content-type": "application/octet-stream", HEAD_LENGTH: str(len(said))}
    return Made(200, headers, said + element)


async def _whole(body: AsyncIterator[bytes] | bytes | None) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return b"".join([piece async for piece in body])

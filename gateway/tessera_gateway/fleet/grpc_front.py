"""KServe over gRPC: bytes in, bytes out; a worker is chosen by a look at them."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NoReturn

import grpc

from tessera.contract import MODELS
from tessera.errors import RESTARTING, InvalidInput, is_restarting
from tessera_gateway.fleet import wire
from tessera_gateway.fleet.book import NoWorker
from tessera_gateway.fleet.checked import check
from tessera_gateway.fleet.copies import register
from tessera_gateway.fleet.counts import merge_messages
from tessera_gateway.fleet.given import read_parameters, with_integers
from tessera_gateway.fleet.learning import read_info
from tessera_gateway.fleet.peek import Peek, peek
from tessera_gateway.fleet.pool import SERVICE, UNLIMITED, Lost, Member, Pool, Seen
from tessera_gateway.fleet.several import by_job, cancel, everywhere, gathered
from tessera_gateway.keys import ANYONE, Key, Keyring, LimitReached, refusal
from tessera_gateway.kserve.parameters import ranked

Context = Any
"""`grpc.aio.ServicerContext`."""

_QUESTIONS = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
)
"""Methods that one worker answers for all."""
_NOT_SHARED = (
    "a worker may be on another machine, which cannot reach it; accepted: tensors in the request"
)
_STATES = ("ServerLive", "ServerReady", "ModelReady")
"""Those that ask whether there is a worker, and do not wait for one."""
_SHARED = tuple(
    f"{kind}SharedMemory{what}"
    for kind in ("System", "Cuda")
    for what in ("Status", "Register", "Unregister")
)
_TELLS_WITHIN_S = 5.0


class GrpcFront:
    """The gRPC service of a fleet.

    Args:
        pool: its workers.
        keyring: who may use it; `None` for the gateway, whose requests are checked already.
        max_body: bytes of a request.
    """

    def __init__(self, pool: Pool, keyring: Keyring | None, *, max_body: int) -> None:
        self._pool = pool
        self._keyring = keyring
        self._max_body = max_body
        self._server: Any = None
        self._cancelling: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which is a free one for 0.

        Raises:
            RuntimeError: the port is taken.
        """
        limits = [("grpc.max_receive_message_length", self._max_body), UNLIMITED[1]]
        self._server = grpc.aio.server(options=[*limits, ("grpc.so_reuseport", 0)])
        methods = {name: self._question(name) for name in _QUESTIONS} | {"ModelInfer": self._infer}
        methods |= dict.fromkeys(_SHARED, _no_shared_memory)
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(handle) for name, handle in methods.items()
        }
        handler = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self._server.add_generic_rpc_handlers((handler,))
        bound: int = self._server.add_insecure_port(f"{host}:{port}")
        await self._server.start()
        return bound

    async def close(self) -> None:
        """Take no more requests, and wait for those under way."""
        await self._server.stop(grace=30.0)

    def _question(self, method: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def ask(request: bytes, context: Context) -> bytes:
            await self._caller(context)
            try:
                if method == "ModelStatistics":
                    return await self._statistics(request)
                member = await self._pool.first(wait=method not in _STATES)
                return await member.call(method, request, context.time_remaining())
            except NoWorker as error:
                await _fail(context, grpc.StatusCode.UNAVAILABLE, str(error))
            except grpc.aio.AioRpcError as error:
                await _fail(context, error.code(), error.details())

        return ask

    async def _statistics(self, request: bytes) -> bytes:
        async def ask(member: Member) -> bytes:
            return await member.call("ModelStatistics", request, _TELLS_WITHIN_S)

        return merge_messages(await gathered(self._pool, ask, grpc.aio.AioRpcError))

    async def _infer(self, request: bytes, context: Context) -> bytes:
        key = await self._caller(context)
        try:
            read, given = wire.read_inference(request), read_parameters(request)
        except wire.Malformed as error:
            await _fail(context, grpc.StatusCode.INVALID_ARGUMENT, f"the request is none: {error}")
        if read.model not in MODELS:
            sentence = f"the model {read.model!r} is not open to clients"
            await _fail(context, grpc.StatusCode.NOT_FOUND, sentence)
        if read.shared:
            sentence = f"an input or output has parameters of shared memory: {_NOT_SHARED}"
            await _fail(context, grpc.StatusCode.INVALID_ARGUMENT, sentence)
        if self._keyring is not None:  # what the gateway itself asks for is checked
            try:
                check(read, given)
            except InvalidInput as error:
                await _fail(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        asked = peek(read.model, read.inputs)
        timeout = context.time_remaining()
        if reason := refusal(key, asked.model, asked.action):
            await _fail(context, grpc.StatusCode.PERMISSION_DENIED, reason)
        request = self._ranked(request, given, key)
        if asked.draws and read.raw and not any(t.name == "JOB_ID" for t in read.inputs):
            request = wire.with_text(request, "JOB_ID", uuid.uuid4().hex)
            asked = peek(read.model, wire.read_inference(request).inputs)
        try:
            with self._turn(key, asked):
                if asked.registers and asked.copies is not None:
                    text = await register(self._pool, asked, read.inputs, timeout)
                    return wire.response_of("templates", "RESULT", text)
                return await self._answer(asked, request, timeout)
        except InvalidInput as error:
            await _fail(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except LimitReached as error:
            await _fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except (NoWorker, Lost) as error:
            await _fail(context, grpc.StatusCode.UNAVAILABLE, _sentence(error))
        except grpc.aio.AioRpcError as error:
            if is_restarting(error.details() or ""):
                await _fail(context, grpc.StatusCode.UNAVAILABLE, RESTARTING)
            await _fail(context, error.code(), error.details())
        except asyncio.CancelledError:
            self._cancel(asked)
            raise

    def _ranked(self, request: bytes, given: dict[str, object], key: Key) -> bytes:
        """With the priority that its caller may have."""
        known = self._keyring is not None and not self._keyring.open
        wanted = ranked(given, key.priority if known else None)
        changed = {name: n for name, n in wanted.items() if given.get(name) != n}
        return with_integers(request, changed)

    async def _answer(self, asked: Peek, request: bytes, timeout: float | None) -> bytes:
        async def pass_on(member: Member) -> bytes:
            return await member.call("ModelInfer", request, timeout)

        if asked.model == "jobs" and asked.action != "load":
            return await by_job(self._pool, asked.job, pass_on, _not_found)
        if asked.model == "templates" and asked.action in ("list", "evict"):
            return wire.response_of("templates", "RESULT", await everywhere(self._pool, asked))
        if asked.model in ("jobs", "adapters"):
            return await pass_on(await self._pool.first())
        return await self._pool.route(asked, lambda m: m.infer(request, timeout), _seen)

    def _cancel(self, asked: Peek) -> None:
        """Nobody waits for a picture any more; its worker hears of it."""
        member = self._pool.of(asked.job) if asked.draws else None
        if member is not None:
            task = asyncio.ensure_future(cancel(member, asked.job))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)

    async def _caller(self, context: Context) -> Key:
        if self._keyring is None or self._keyring.open:
            return ANYONE
        sent = dict(context.invocation_metadata()).get("authorization", "")
        scheme, _, token = str(sent).partition(" ")
        key = self._keyring.find(token) if scheme.lower() == "bearer" else None
        if key is None:
            sentence = "the metadata authorization has no known key; accepted: Bearer and a key"
            await _fail(context, grpc.StatusCode.UNAUTHENTICATED, sentence)
        return key

    @contextlib.contextmanager
    def _turn(self, key: Key, asked: Peek) -> Iterator[None]:
        counted = self._keyring is not None and (asked.draws or asked.model == "templates")
        with self._keyring.turn(key, 1) if counted else contextlib.nullcontext():  # type: ignore[union-attr]
            yield


async def _no_shared_memory(request: bytes, context: Context) -> bytes:
    sentence = f"a fleet has no shared memory with clients: {_NOT_SHARED}"
    await _fail(context, grpc.StatusCode.UNIMPLEMENTED, sentence)


def _seen(answer: bytes) -> Seen:
    try:
        return Seen(drawn=read_info(wire.output_text(answer, "INFO")))
    except wire.Malformed:
        return Seen()


def _not_found(answer: bytes | Exception) -> bool:
    return isinstance(answer, grpc.aio.AioRpcError) and answer.code() == grpc.StatusCode.NOT_FOUND


def _sentence(error: NoWorker | Lost) -> str | None:
    answer = error.answer if isinstance(error, Lost) else error
    return answer.details() if isinstance(answer, grpc.aio.AioRpcError) else str(answer)


async def _fail(context: Context, code: grpc.StatusCode, sentence: str | None) -> NoReturn:
    await context.abort(code, sentence or "")
    raise AssertionError("abort raises")

"""`tessera-picker`: tells Envoy which worker a request goes to, by the fleet's score.

It serves Envoy's external processing (ext_proc) as the Gateway API's endpoint picker does: the
chosen address is in the header `x-gateway-destination-endpoint` and in the metadata `envoy.lb`.
The second best follows it, for a retry. Requests do not pass through here, only a copy of their
bytes does, which is read where it lies (`wire`). Field numbers are those of
envoy/service/ext_proc/v3/external_processor.proto.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import msgspec
import typer

from tessera.contract import MODELS
from tessera.errors import TesseraError
from tessera.terminal.console import Console
from tessera_gateway.fleet import ext_proc, wire
from tessera_gateway.fleet.book import Book, Choice, NoWorker
from tessera_gateway.fleet.copies import Copies
from tessera_gateway.fleet.peek import Peek, peek, peek_http, peek_values
from tessera_gateway.fleet.pool import SERVICE, UNLIMITED, Pool
from tessera_gateway.fleet.settings import FleetError, FleetSettings, Server, read_settings
from tessera_gateway.fleet.several import cancel, evicted_elsewhere
from tessera_gateway.fleet.upstream import INFER
from tessera_gateway.kserve.framing import HEAD_LENGTH

log = logging.getLogger("tessera_gateway")
app = typer.Typer(add_completion=False)

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
DESTINATION = "x-gateway-destination-endpoint"
RESOLVES_EVERY_S = 2.0
EVICTS_WITHIN_S = 0.6
ANSWERS_WITHIN_S = 1.0
"""Envoy waits for 2 s in the example, and then goes on without an answer."""

# Fields of ProcessingRequest, and of ProcessingResponse.
_HEADERS, _RESPONSE_HEADERS, _BODY, _PROTOCOL = 2, 3, 4, 11
_TO_HEADERS, _TO_RESPONSE_HEADERS, _IMMEDIATE, _METADATA = 1, 2, 7, 8
_FULL_DUPLEX = 4
_SERVICE_UNAVAILABLE = b"\x08\xf7\x03"  # status.code, a varint: 503
_GRPC_UNAVAILABLE = b"\x08\x0e"

Port = Annotated[int, typer.Option(help="Port for Envoy's external processing.", min=1, max=65535)]
File = Annotated[Path, typer.Argument(metavar="fleet.yaml", help="File that lists the servers.")]


class Picker:
    """The service.

    Args:
        pool: the workers.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._server: Any = None
        self._closing = False
        self._telling: set[tuple[str, bool]] = set()
        """Who sends the headers of answers: hosts, and whether they stream bodies."""
        self._cancelling: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which is a free one for 0.

        Raises:
            RuntimeError: the port is taken.
        """
        self._server = grpc.aio.server(options=[*UNLIMITED, ("grpc.so_reuseport", 0)])
        handler = grpc.stream_stream_rpc_method_handler(self._process)
        service = grpc.method_handlers_generic_handler(EXT_PROC, {"Process": handler})
        self._server.add_generic_rpc_handlers((service,))
        bound: int = self._server.add_insecure_port(f"{host}:{port}")
        await self._server.start()
        return bound

    async def close(self) -> None:
        """Take no more requests."""
        self._closing = True
        await self._server.stop(grace=1.0)

    async def _process(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """One request of a client, from its headers to those of the answer."""
        request = _Request(self.pool)
        host = str(context.peer()).rpartition(":")[0]  # not later: a call that is over has no peer
        try:
            async for message in messages:
                async for answer in request.answers(memoryview(message)):
                    yield answer
        finally:
            if request.answered:
                self._telling.add((host, request.duplex))
            elif (host, request.duplex) in self._telling and not self._closing:
                self._left(request)
            request.end()

    def _left(self, request: _Request) -> None:
        """Envoy has closed a stream before any answer came: the caller is gone. Its job is
        cancelled.
        """
        choice, job = request.choice, request.job
        if choice is None or not job or choice.worker not in self.pool.members:
            return
        task = asyncio.ensure_future(cancel(self.pool.members[choice.worker], job))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)


@dataclass
class _Request:
    """A client's request, as far as Envoy has told of it.

    Attributes:
        job: id of a picture whose worker was told to Envoy in time.
        answered: whether headers of an answer have come.
    """

    pool: Pool
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    duplex: bool = False
    choice: Choice | None = None
    job: str = ""
    answered: bool = False

    async def answers(self, message: memoryview) -> AsyncIterator[bytes]:
        """What Envoy is told in answer to a message."""
        parts = dict(wire.fields(message))
        if _PROTOCOL in parts:
            self.duplex = dict(wire.fields(wire.message(parts[_PROTOCOL]))).get(1) == _FULL_DUPLEX
        if _HEADERS in parts:
            told = dict(wire.fields(wire.message(parts[_HEADERS])))
            self.headers = dict(ext_proc.headers_of(wire.message(told[1])))
            if told.get(3):  # there is no body
                async for answer in self._chosen(b"", with_body=False):
                    yield answer
            elif not self.duplex:
                yield wire.field(_TO_HEADERS, b"")
        elif _BODY in parts:
            told = dict(wire.fields(wire.message(parts[_BODY])))
            self.body += wire.message(told.get(1, memoryview(b"")))
            if told.get(2):
                async for answer in self._chosen(bytes(self.body), with_body=True):
                    yield answer
        elif _RESPONSE_HEADERS in parts:
            self.answered = True
            self.end()
            yield wire.field(_TO_RESPONSE_HEADERS, b"")

    def end(self) -> None:
        """The request is answered, or nobody waits for it."""
        if self.choice is not None:
            self.pool.book.end(self.choice, time.monotonic())
            self.choice = None

    @property
    def _grpc(self) -> bool:
        return self.headers.get("content-type", "").startswith("application/grpc")

    async def _chosen(self, body: bytes, *, with_body: bool) -> AsyncIterator[bytes]:
        began = time.monotonic()
        asked, new_body, changed = self._look(body)
        try:
            addresses = await self._addresses(asked)
        except NoWorker as error:
            yield wire.field(_IMMEDIATE, self._refusal(str(error)))
            return
        if asked.draws and time.monotonic() - began < ANSWERS_WITHIN_S:
            self.job = asked.job
        set_headers = {DESTINATION: addresses, **changed}
        metadata = wire.field(_METADATA, ext_proc.struct_of({"envoy.lb": {DESTINATION: addresses}}))
        if not with_body or self.duplex:
            yield wire.field(_TO_HEADERS, wire.field(1, ext_proc.mutation(set_headers))) + metadata
        elif new_body == body:
            yield (
                wire.field(ext_proc.TO_BODY, wire.field(1, ext_proc.mutation(set_headers)))
                + metadata
            )
        else:
            if "content-length" in self.headers:
                set_headers["content-length"] = str(len(new_body))
            common = ext_proc.mutation(set_headers) + wire.field(3, wire.field(1, new_body))
            yield wire.field(ext_proc.TO_BODY, wire.field(1, common)) + metadata
        if with_body and self.duplex:
            for piece in ext_proc.streamed(new_body):
                yield piece

    def _look(self, body: bytes) -> tuple[Peek, bytes, dict[str, str]]:
        """A request for a picture gets a JOB_ID, by which its worker's word of it is understood:
        a peek, the body, and headers that change with it.
        """
        try:
            if self._grpc:
                return _look_grpc(self.headers.get(":path", ""), body)
            return _look_http(self.headers, body)
        except (TesseraError, wire.Malformed, ValueError, LookupError, RecursionError):
            return Peek(), body, {}  # the worker will say what is wrong

    async def _addresses(self, asked: Peek) -> str:
        """Where it goes, and where else it can go.

        Raises:
            NoWorker: nowhere.
        """
        pool = self.pool
        own = pool.of(asked.job) if asked.model == "jobs" else None
        if own is not None:
            return self._address(own.server)
        if (asked.model, asked.action) == ("templates", "evict"):
            member = await evicted_elsewhere(pool, asked, EVICTS_WITHIN_S)
            return self._address(member.server)
        if not (asked.draws or asked.registers):
            return self._address(pool.first_now().server)
        self.choice = pool.book.choose(asked, time.monotonic())
        pool.watch(asked, self.choice)
        scores = self.choice.scores
        best = [self.choice.worker]
        best += sorted(scores.keys() - {self.choice.worker}, key=lambda n: scores[n])[:1]
        return ",".join(self._address(pool.members[name].server) for name in best)

    def _address(self, server: Server) -> str:
        return server.grpc if self._grpc else server.http

    def _refusal(self, sentence: str) -> bytes:
        out = wire.field(1, _SERVICE_UNAVAILABLE)
        if self._grpc:
            return out + wire.field(4, _GRPC_UNAVAILABLE) + wire.field(5, sentence.encode())
        return out + wire.field(3, json.dumps({"error": sentence}).encode())


def _look_grpc(path: str, body: bytes) -> tuple[Peek, bytes, dict[str, str]]:
    """A gRPC body has a flag and a length of 4 bytes before the message."""
    if path != f"/{SERVICE}/ModelInfer" or len(body) < 5 or body[0]:  # others, or compressed
        return Peek(), body, {}
    message = body[5:]
    read = wire.read_inference(message)
    asked = peek(read.model, read.inputs)
    if asked.draws and read.raw and not any(t.name == "JOB_ID" for t in read.inputs):
        message = wire.with_text(message, "JOB_ID", uuid.uuid4().hex)
        asked = peek(read.model, wire.read_inference(message).inputs)
        body = b"\0" + len(message).to_bytes(4, "big") + message
    return asked, body, {}


def _look_http(headers: dict[str, str], body: bytes) -> tuple[Peek, bytes, dict[str, str]]:
    asked = INFER.fullmatch(headers.get(":path", "").partition("?")[0])
    if asked is None or asked[1] not in MODELS:
        return Peek(), body, {}
    if asked[2] == "generate":
        return *_look_values(asked[1], body), {}
    length = headers.get(HEAD_LENGTH)
    size = len(body) if length is None else int(length)
    found = peek_http(asked[1], size, body)
    if not found.draws or found.job:
        return found, body, {}
    head, job = json.loads(body[:size]), uuid.uuid4().hex
    if any(each["name"] == "JOB_ID" for each in head["inputs"]):
        return found, body, {}  # the worker will say what is wrong
    head["inputs"].append({"name": "JOB_ID", "datatype": "BYTES", "shape": [1, 1], "data": [job]})
    encoded = json.dumps(head).encode()
    found = peek_http(asked[1], len(encoded), encoded + body[size:])
    changed = {} if length is None else {HEAD_LENGTH: str(len(encoded))}
    return found, encoded + body[size:], changed


def _look_values(model: str, body: bytes) -> tuple[Peek, bytes]:
    """Of a call of KServe's generate extension, whose JSON has names and values."""
    values = msgspec.json.decode(body, type=dict[str, Any])
    found = peek_values(model, values)
    if not found.draws or "JOB_ID" in values:
        return found, body
    values["JOB_ID"] = uuid.uuid4().hex
    return peek_values(model, values), json.dumps(values).encode()


async def resolved(servers: tuple[Server, ...], before: dict[Server, list[Server]]) -> list[Server]:
    """Servers by their addresses; a name may stand for many, as that of a headless service does.

    Args:
        servers: by their names.
        before: the addresses that each had last, which it keeps if its name is not resolved now;
            updated.
    """
    for server in servers:
        name, _, port = server.grpc.rpartition(":")
        http = server.http.rpartition(":")[2]
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(
                name, int(port), family=socket.AF_INET, type=socket.SOCK_STREAM
            )
        except OSError as error:
            log.warning("%s is not resolved: %s", name, error)
            continue
        addresses = sorted({str(info[4][0]) for info in infos})
        before[server] = [Server(f"{each}:{port}", f"{each}:{http}") for each in addresses]
    return [each for server in servers for each in before.get(server, ())]


async def serve(settings: FleetSettings, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    pool = Pool(Book(settings.weights))
    Copies(pool)
    picker, stopped = Picker(pool), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await picker.start(settings.host, port)
    log.info("the picker is ready on port %d", port)
    before: dict[Server, list[Server]] = {}
    while not stopped.is_set():
        pool.have(await resolved(settings.servers, before))
        try:
            await asyncio.wait_for(stopped.wait(), RESOLVES_EVERY_S)
        except TimeoutError:
            continue
    await picker.close()
    await pool.close()


@app.command()
def pick(file: File, port: Port = 9002) -> None:
    """Tell Envoy which worker of a fleet each request goes to."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        settings = read_settings(file)
        if not settings.servers:
            raise FleetError(f"{file} has to name servers: the picker starts none")
        asyncio.run(serve(settings, port))
    except (FleetError, RuntimeError) as error:
        Console(stderr=True).print(f"error: {error}")
        raise typer.Exit(1) from None


def main() -> None:
    """The console script."""
    app()

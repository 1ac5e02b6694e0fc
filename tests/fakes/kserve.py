"""A fake of Triton's gRPC service: answers bytes, and fails as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tessera_gateway.fleet import wire
from tessera_gateway.fleet.given import read_parameters
from tessera_gateway.fleet.peek import Peek, peek_grpc
from tessera_gateway.fleet.pool import SERVICE
from tessera_gateway.fleet.settings import Server

LINES = {"dense": [0.0, 1.0], "sparse": [1.0, 1.0], "factors": []}
DEFAULTS = {"steps": 10, "width": 64, "height": 64}


class FakeTriton:
    """One worker.

    Attributes:
        load: what it tells.
        jobs: that it knows.
        drawn: jobs that it was asked to draw, in order.
        cancelled: jobs that it knew, and was asked to cancel.
        asked_to_cancel: the same, whether it knew them or not.
        fails: status and sentence with which it answers requests for pictures.
        holds: whether pictures wait until they are cancelled.
        templates: RESULT of a listing.
        evicted: ids of templates that it was asked to evict.
        pictures: of its templates, by id: shape and bytes.
        registered: peeks at the registrations that it was asked for, in order.
        given: parameters of the requests for pictures, in order.
        info: INFO of a picture; by default its name.
        statistics: answer to ModelStatistics.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.load: dict[str, Any] = {"worker": name, "lines": LINES, "defaults": DEFAULTS}
        self.jobs: set[str] = set()
        self.drawn: list[str] = []
        self.cancelled: list[str] = []
        self.asked_to_cancel: list[str] = []
        self.fails: tuple[grpc.StatusCode, str] | None = None
        self.holds = False
        self.templates: dict[str, Any] = {}
        self.evicted: list[str] = []
        self.pictures: dict[str, tuple[tuple[int, ...], bytes]] = {}
        self.registered: list[Peek] = []
        self.given: list[dict[str, object]] = []
        self.info = name
        self.statistics = b""
        self._server: Any = None

    async def start(self) -> Server:
        """Listen on a free port."""
        self._server = grpc.aio.server()
        methods = {
            "ModelInfer": self._infer,
            "ServerMetadata": self._metadata,
            "ModelStatistics": self._statistics,
        }
        handlers = {n: grpc.unary_unary_rpc_method_handler(m) for n, m in methods.items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return Server(grpc=f"127.0.0.1:{port}", http="127.0.0.1:9")

    async def stop(self) -> None:
        """End at once, like a process that is killed."""
        await self._server.stop(grace=None)

    async def _metadata(self, request: bytes, context: Any) -> bytes:
        return self.name.encode()

    async def _statistics(self, request: bytes, context: Any) -> bytes:
        if not self.statistics:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no statistics")
        return self.statistics

    async def _infer(self, request: bytes, context: Any) -> bytes:
        asked = peek_grpc(request)
        if asked.action == "load":
            return wire.response_of("jobs", "RESULT", json.dumps(self.load))
        if asked.model == "templates" and asked.action in ("picture", "register"):
            return await self._template(asked, request, context)
        if asked.model == "templates" and asked.action in ("list", "evict"):
            self.evicted += [asked.template] if asked.action == "evict" else []
            if not self.templates:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "TEMPLATE is 't'")
            return wire.response_of("templates", "RESULT", json.dumps(self.templates))
        if asked.model == "jobs":
            self.asked_to_cancel += [asked.job] if asked.action == "cancel" else []
            if asked.job not in self.jobs:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"JOB_ID is {asked.job!r}")
            if asked.action == "cancel":
                self.cancelled.append(asked.job)
            return wire.response_of("jobs", "RESULT", self.name)
        self.given.append(read_parameters(request))
        return await self._draw(asked.job, context)

    async def _template(self, asked: Peek, request: bytes, context: Any) -> bytes:
        if asked.action == "register":
            self.registered.append(asked)
            if self.fails:
                await context.abort(*self.fails)
            sent = {t.name: t for t in wire.read_inference(request).inputs}
            if "IMAGE" in sent:
                self.pictures[asked.template] = (
                    sent["IMAGE"].shape,
                    bytes(sent["IMAGE"].data or b""),
                )
            self.load["templates"] = sorted(self.pictures)
            done = {"template": asked.template, "steps": asked.steps or DEFAULTS["steps"]}
            return wire.response_of("templates", "RESULT", json.dumps(done))
        if asked.template not in self.pictures:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"TEMPLATE is {asked.template!r}")
        shape, data = self.pictures[asked.template]
        dims = wire.field(3, bytes(shape))
        heads = wire.field(1, b"IMAGE") + wire.field(2, b"UINT8") + dims
        answer = wire.response_of("templates", "RESULT", "{}")
        return answer + wire.field(5, heads) + wire.field(6, data)

    async def _draw(self, job: str, context: Any) -> bytes:
        self.drawn.append(job)
        self.jobs.add(job)
        if self.fails:
            await context.abort(*self.fails)
        while self.holds:
            await asyncio.sleep(0.01)
        return wire.response_of("generate", "INFO", self.info)


@asynccontextmanager
async def fake_workers(*names: str) -> AsyncIterator[tuple[list[FakeTriton], list[Server]]]:
    """Workers that run meanwhile."""
    workers = [FakeTriton(name) for name in names]
    servers = [await worker.start() for worker in workers]
    try:
        yield workers, servers
    finally:
        for worker in workers:
            worker.holds = False
            await worker.stop()

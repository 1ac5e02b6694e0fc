"""The gRPC front of a fleet before fake workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.grpc_front import GrpcFront
from tessera_gateway.fleet.pool import SERVICE, Pool
from tessera_gateway.keys import Keyring
from tests.fakes.kserve import FakeTriton, fake_workers


@dataclass
class Running:
    """A front, its pool and its workers, the one with the lower port first."""

    pool: Pool
    workers: list[FakeTriton]
    call: Callable[..., Awaitable[bytes]]


@asynccontextmanager
async def fleet(keys: Path | None = None, names: str = "ab") -> AsyncIterator[Running]:
    async with fake_workers(*names) as (workers, servers):
        pool = Pool(Book())
        pool.have(servers)
        front = GrpcFront(pool, Keyring(keys), max_body=10**6)
        port = await front.start("127.0.0.1", 0)
        for server in servers:
            await pool.ask(server.grpc)
        ordered = sorted(zip(servers, workers, strict=True), key=lambda pair: pair[0].grpc)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

            async def call(data: bytes, method: str = "ModelInfer", **options: Any) -> bytes:
                answer: bytes = await channel.unary_unary(f"/{SERVICE}/{method}")(data, **options)
                return answer

            try:
                yield Running(pool, [worker for _, worker in ordered], call)
            finally:
                for worker in workers:
                    worker.holds = False
                await front.close()
                await pool.close()

"""The address of a fleet, and what it tells."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from bench.server import free_ports
from tessera_gateway.fleet import wire
from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.front import Front, chosen, digest_of
from tessera_gateway.fleet.load import Load
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.pool import SERVICE, Pool
from tessera_gateway.fleet.settings import FleetSettings
from tessera_gateway.keys import make_key
from tests.fakes.kserve import fake_workers
from tests.samples.waiting import PATIENCE_S

DRAW = wire.request_of("generate", {"PROMPT": "x", "JOB_ID": "j"})


def test_choices_tell_no_ids() -> None:
    """Who knows a job's id can cancel it, and who knows a template's can see it."""
    pool = Pool(Book())
    pool.book.tell("a", Load(), 100.0)
    pool.book.choose(Peek("edit", job="j", template="t"), 100.0)
    pool.book.choose(Peek("generate", job="k"), 100.0)
    told = [(each["job"], each["template"]) for each in chosen(pool)]
    assert told == [(digest_of("j"), digest_of("t")), (digest_of("k"), None)]


@asynccontextmanager
async def fleet(keys: Path) -> AsyncIterator[tuple[Any, Any]]:
    """Calls for a picture over HTTP (the status) and gRPC (the code) by tokens."""
    http, grpc_port = free_ports(2)
    async with fake_workers("a") as (_, servers):
        settings = FleetSettings(
            servers=tuple(servers), http_port=http, grpc_port=grpc_port, keys=str(keys)
        )
        front = Front(settings)
        front.pool.have(servers)
        serving = asyncio.ensure_future(front.serve())
        address = f"127.0.0.1:{grpc_port}"
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{http}") as session,
            grpc.aio.insecure_channel(address) as channel,
        ):

            async def over_http(token: str) -> int:
                path = "/v2/models/generate/generate"
                key = {"Authorization": f"Bearer {token}"}
                async with session.post(path, json={"PROMPT": "x"}, headers=key) as answer:
                    return answer.status

            async def over_grpc(token: str) -> grpc.StatusCode:
                key = (("authorization", f"Bearer {token}"),)
                call = channel.unary_unary(f"/{SERVICE}/ModelInfer")(DRAW, metadata=key)
                code: grpc.StatusCode = await call.code()
                return code

            async with asyncio.timeout(PATIENCE_S):
                while not await _listens(session):
                    await asyncio.sleep(0.05)
            try:
                yield over_http, over_grpc
            finally:
                front.stop()
                await serving


async def _listens(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/v2/health/ready"):
            return True
    except aiohttp.ClientError:
        return False


def test_a_key_that_is_taken_away_is_known_nowhere(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    (old, lines), (new, more) = make_key("old"), make_key("new")
    keys.write_text(lines)

    async def run() -> None:
        async with fleet(keys) as (over_http, over_grpc):
            assert await over_grpc(old) == grpc.StatusCode.OK
            keys.write_text(more)
            os.kill(os.getpid(), signal.SIGHUP)
            async with asyncio.timeout(PATIENCE_S):
                while await over_http(old) != 401:
                    await asyncio.sleep(0.01)
            assert await over_grpc(old) == grpc.StatusCode.UNAUTHENTICATED
            assert await over_grpc(new) == grpc.StatusCode.OK

    asyncio.run(run())


@pytest.mark.parametrize("first", ["grpc", "http"])
def test_a_keys_pictures_count_together(tmp_path: Path, first: str) -> None:
    keys = tmp_path / "keys.toml"
    token, lines = make_key("alice")
    keys.write_text(f"{lines}per_minute = 1\n")

    async def run() -> None:
        async with fleet(keys) as (over_http, over_grpc):
            if first == "grpc":
                assert await over_grpc(token) == grpc.StatusCode.OK
                assert await over_http(token) == 429
            else:  # the worker has no HTTP
                assert await over_http(token) == 503
                assert await over_grpc(token) == grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(run())

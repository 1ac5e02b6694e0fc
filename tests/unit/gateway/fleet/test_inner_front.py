"""The servers of a fleet's address."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tessera_gateway.fleet import wire
from tessera_gateway.fleet.front import Front
from tessera_gateway.fleet.pool import SERVICE, UNLIMITED
from tessera_gateway.fleet.settings import FleetSettings
from tessera_gateway.settings import GatewaySettings

LARGE = wire.request_of("generate", {"PROMPT": "x" * (GatewaySettings.max_body + 1)})


@pytest.mark.parametrize("inner", [True, False])
def test_pictures_of_the_gateway_may_be_larger_than_a_body(inner: bool) -> None:
    """A photo of 12 megapixels has 36 MB once it is read. Strangers' requests are limited."""

    async def run() -> None:
        front = Front(FleetSettings())
        server = front._inner if inner else front._grpc
        port = await server.start("127.0.0.1", 0)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", UNLIMITED) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(f"/{SERVICE}/ModelInfer")(LARGE)
            said = "no worker of the fleet" if inner else "larger than max"
            assert said in (caught.value.details() or "")
        finally:
            await server.close()
            await front.pool.close()

    asyncio.run(run())

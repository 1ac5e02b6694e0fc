"""Named arrays over HTTP or gRPC for asyncio."""

from __future__ import annotations

from typing import Protocol

from tessera.types import Array
from tessera_client.address import Address
from tessera_client.wire import Call


class AsyncTransport(Protocol):
    """`Transport` for asyncio."""

    async def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """See `Transport.infer`."""
        ...

    async def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """See `Transport.ready`."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


def connect_async(address: Address) -> AsyncTransport:
    """An asyncio transport to an address.

    Raises:
        ModuleNotFoundError: what its protocol needs is not installed.
    """
    if address.scheme.startswith("grpc"):
        from tessera_client.grpc_transport import AsyncGrpcTransport

        return AsyncGrpcTransport(address)
    from tessera_client.aio_http_transport import AsyncHttpTransport

    return AsyncHttpTransport(address)

"""Named arrays over HTTP or gRPC for asyncio, by tritonclient."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from tessera.types import Array
from tessera_client.wire import CHANNEL, Call, received, split_url


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


def connect_async(url: str) -> AsyncTransport:
    """An asyncio transport for `http://host:port` or `grpc://host:port`."""
    scheme, address = split_url(url)
    return AsyncHttpTransport(address) if scheme == "http" else AsyncGrpcTransport(address)


class AsyncHttpTransport:
    """HTTP for asyncio."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._opened: Any = None

    async def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """See `Transport.infer`."""
        import tritonclient.http.aio as triton

        try:
            async with asyncio.timeout(timeout):
                answer = await self._client().infer(**call.arguments(triton, timeout))
        except Exception as error:
            raise received(error, self._address, timeout) from None
        return call.arrays(answer)

    async def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """See `Transport.ready`."""
        client = self._client()
        call = client.is_model_ready(model) if model else client.is_server_ready()
        try:
            async with asyncio.timeout(timeout):
                return bool(await call)
        except Exception:
            return False

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _client(self) -> Any:
        """Made at first use: it must be inside the running loop."""
        import tritonclient.http.aio as triton

        if self._opened is None:
            self._opened = triton.InferenceServerClient(self._address, conn_timeout=86_400.0)
        return self._opened


class AsyncGrpcTransport:
    """GRPC for asyncio."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._opened: Any = None

    async def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """See `Transport.infer`."""
        import tritonclient.grpc.aio as triton

        try:
            answer = await self._client().infer(
                **call.arguments(triton, timeout), client_timeout=timeout
            )
        except Exception as error:
            raise received(error, self._address, timeout) from None
        return call.arrays(answer)

    async def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """See `Transport.ready`."""
        client = self._client()
        call = client.is_model_ready(model) if model else client.is_server_ready()
        try:
            async with asyncio.timeout(timeout):
                return bool(await call)
        except Exception:
            return False

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _client(self) -> Any:
        import tritonclient.grpc.aio as triton

        if self._opened is None:
            self._opened = triton.InferenceServerClient(self._address, channel_args=CHANNEL)
        return self._opened

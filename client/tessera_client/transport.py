"""Named arrays over HTTP or gRPC, by tritonclient.

A transport is the seam of the client: tests put a fake in its place.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from tessera_client.wire import CHANNEL, Array, Call, received, split_url


class Transport(Protocol):
    """A connection to one server; usable from several threads."""

    def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """Run a model; `timeout` in seconds.

        Raises:
            TesseraError: the server's answer, or why there is none.
        """
        ...

    def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """Whether the server (or one model) says that it is ready; False if it cannot be
        reached.
        """
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def connect(url: str) -> Transport:
    """A transport for `http://host:port` or `grpc://host:port`."""
    scheme, address = split_url(url)
    return HttpTransport(address) if scheme == "http" else GrpcTransport(address)


class HttpTransport:
    """HTTP; tritonclient's HTTP client belongs to the thread that made it, so there is one per
    thread and timeout.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._local = threading.local()
        self._all: list[Any] = []

    def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """See `Transport.infer`."""
        import tritonclient.http as triton

        try:
            answer = self._client(timeout).infer(**call.arguments(triton))
        except Exception as error:
            raise received(error, self._address, timeout) from None
        return call.arrays(answer)

    def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """See `Transport.ready`."""
        try:
            client = self._client(timeout)
            return bool(client.is_model_ready(model) if model else client.is_server_ready())
        except Exception:
            return False

    def close(self) -> None:
        """See `Transport.close`."""
        for client in self._all:
            client.close()
        self._all.clear()

    def _client(self, timeout: float) -> Any:
        import tritonclient.http as triton

        mine: dict[float, Any] = self._local.__dict__.setdefault("clients", {})
        if timeout not in mine:
            mine[timeout] = triton.InferenceServerClient(
                self._address, connection_timeout=min(timeout, 10.0), network_timeout=timeout
            )
            self._all.append(mine[timeout])
        return mine[timeout]


class GrpcTransport:
    """gRPC."""

    def __init__(self, address: str) -> None:
        import tritonclient.grpc as triton

        self._address = address
        self._client = triton.InferenceServerClient(address, channel_args=CHANNEL)

    def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """See `Transport.infer`."""
        import tritonclient.grpc as triton

        try:
            answer = self._client.infer(**call.arguments(triton), client_timeout=timeout)
        except Exception as error:
            raise received(error, self._address, timeout) from None
        return call.arrays(answer)

    def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """See `Transport.ready`."""
        try:
            if model:
                return bool(self._client.is_model_ready(model, client_timeout=timeout))
            return bool(self._client.is_server_ready(client_timeout=timeout))
        except Exception:
            return False

    def close(self) -> None:
        """See `Transport.close`."""
        self._client.close()

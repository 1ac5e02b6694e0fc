"""Named arrays over HTTP or gRPC, by tritonclient.

A transport is the seam of the client: tests put a fake in its place.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse
from types import MappingProxyType
from typing import Protocol

from tritonclient.utils import InferenceServerException

from tessera.types import Array
from tessera_client.wire import CHANNEL, Call, received, split_url

_CONNECTS_WITHIN_S = 10.0
_HEADER_LENGTH = "Inference-Header-Content-Length"


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
    """HTTP: as many connections as there are calls at a time, kept for later ones.

    tritonclient writes the requests and reads the answers; its connections belong to the thread
    that made them, and what they hold is not free when that ends.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._idle: list[HTTPConnection] = []
        self._closed = False

    def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """See `Transport.infer`."""
        import tritonclient.http as triton

        try:
            arguments = call.arguments(triton, timeout)
            path = f"/v2/models/{arguments.pop('model_name')}/infer"
            body, length = triton.InferenceServerClient.generate_request_body(**arguments)
            headers = {} if length is None else {_HEADER_LENGTH: str(length)}
            response, content = self._ask("POST", path, timeout, body, headers)
            if response.status != 200:
                raise InferenceServerException(_sentence(content), str(response.status))
            length = response.getheader(_HEADER_LENGTH)
            answer = triton.InferenceServerClient.parse_response_body(
                content, header_length=length and int(length)
            )
        except Exception as error:
            raise received(error, self._address, timeout) from None
        return call.arrays(answer)

    def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """See `Transport.ready`."""
        path = f"/v2/models/{model}/ready" if model else "/v2/health/ready"
        try:
            return self._ask("GET", path, timeout)[0].status == 200
        except Exception:
            return False

    def close(self) -> None:
        """See `Transport.close`."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _ask(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[HTTPResponse, bytes]:
        """The answer, whatever its status, and its body."""
        connection = self._connection(timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            connection.close()
            raise
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)
        return response, content

    def _connection(self, timeout: float) -> HTTPConnection:
        """An open one that no call uses, or a new one; `timeout` is that of its socket."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = HTTPConnection(self._address, timeout=min(timeout, _CONNECTS_WITHIN_S))
                connection.connect()
            if _is_open(connection):
                connection.sock.settimeout(timeout)
                return connection
            connection.close()


def _is_open(connection: HTTPConnection) -> bool:
    """Whether nothing has come since the last answer: not even the server's end of it."""
    if connection.sock is None:
        return False
    connection.sock.setblocking(False)
    try:
        connection.sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _sentence(content: bytes) -> str:
    """What an answer says that is an error."""
    try:
        return str(json.loads(content)["error"])
    except (ValueError, LookupError, TypeError):
        return content.decode(errors="replace") or "no reason was given"


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
            answer = self._client.infer(**call.arguments(triton, timeout), client_timeout=timeout)
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

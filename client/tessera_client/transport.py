"""Named arrays over HTTP or gRPC.

A transport is the seam of the client: tests put a fake in its place.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from types import MappingProxyType
from typing import Protocol

from tessera.types import Array
from tessera_client import http_body
from tessera_client.address import Address
from tessera_client.wire import Call, ErrorAnswer, received

_CONNECTS_WITHIN_S = 10.0


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


def connect(address: Address) -> Transport:
    """A transport to an address.

    Raises:
        ModuleNotFoundError: it is gRPC's, and that is not installed.
    """
    if address.scheme.startswith("grpc"):
        from tessera_client.grpc_transport import GrpcTransport

        return GrpcTransport(address)
    return HttpTransport(address)


class HttpTransport:
    """HTTP: as many connections as there are calls at a time, kept for later ones."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[HTTPConnection] = []
        self._closed = False

    def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """See `Transport.infer`."""
        try:
            body, headers = http_body.written(call, timeout)
            path = f"/v2/models/{call.model}/infer"
            response, content = self._ask("POST", path, timeout, body, headers)
            if response.status != 200:
                raise ErrorAnswer(http_body.sentence_of(content), str(response.status))
            return http_body.read(content, response.getheader(http_body.LENGTH), call.outputs)
        except Exception as error:
            raise received(error, self._address.netloc, timeout) from None

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
            every = {**self._address.headers, **headers}
            connection.request(method, self._address.prefix + path, body, every)
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
                connection = self._new(min(timeout, _CONNECTS_WITHIN_S))
                connection.connect()
                connection.sock.settimeout(timeout)
                return connection
            if _is_open(connection):
                connection.sock.settimeout(timeout)
                return connection
            connection.close()

    def _new(self, timeout: float) -> HTTPConnection:
        netloc, tls = self._address.netloc, self._address.tls
        if tls is None:
            return HTTPConnection(netloc, timeout=timeout)
        return HTTPSConnection(netloc, timeout=timeout, context=tls)


def _is_open(connection: HTTPConnection) -> bool:
    """Whether nothing has come since the last answer: not even the server's end of it."""
    if connection.sock is None:
        return False
    with socket.socket(fileno=connection.sock.fileno()) as plain:  # TLS cannot look ahead
        try:
            return _is_silent(plain)
        finally:
            plain.detach()


def _is_silent(plain: socket.socket) -> bool:
    plain.setblocking(False)
    try:
        plain.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False

"""HTTP requests that no client library would send."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.samples.waiting import PATIENCE_S


@dataclass(frozen=True)
class Answer:
    """An answer's status, headers and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The sentence of an answer in Triton's form."""
        content: dict[str, Any] = json.loads(self.body)
        return str(content["error"])


def send(
    url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """The answer to one request; its path is sent as it is."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers or {}))
        return _read(connection.getresponse())


def send_chunks(
    url: str, path: str, chunks: Iterable[bytes], headers: Mapping[str, str] | None = None
) -> Answer:
    """The answer to POST with a body in these chunks; it may come before all are sent."""
    address = urlsplit(url)
    framed = (b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    given = {"Host": address.netloc, "Transfer-Encoding": "chunked", **(headers or {})}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    head = "\r\n".join([*lines, "", ""])
    with socket.create_connection((address.hostname, address.port), PATIENCE_S) as connection:
        with contextlib.suppress(ConnectionError), connection.makefile("wb") as stream:
            stream.write(head.encode())
            stream.writelines(framed)
            stream.write(b"0\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        return _read(response)


def _read(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())

"""Parts of the messages of Envoy's external processing, read and written by `wire`.

https://github.com/envoyproxy/envoy/blob/main/api/envoy/service/ext_proc/v3/external_processor.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tessera_gateway.fleet import wire

TO_BODY = 3
"""Of ProcessingResponse: the answer to a body."""
_OVERWRITE = b"\x18\x02"
"""`append_action` of a header: a caller cannot choose its worker by a header of its own."""
_PIECE = 60_000
"""Bytes of a body in one message, below Envoy's limit of 64 KiB."""


def headers_of(header_map: memoryview) -> Iterator[tuple[str, str]]:
    """Names and values in a HeaderMap."""
    for _, each in wire.fields(header_map):
        parts = dict(wire.fields(wire.message(each)))
        value = parts.get(3) or parts.get(2) or memoryview(b"")  # raw_value, or value
        yield str(wire.message(parts[1]), "utf-8"), str(bytes(wire.message(value)), "latin-1")


def mutation(headers: dict[str, str]) -> bytes:
    """A CommonResponse that sets headers."""
    options = b"".join(
        wire.field(
            1,
            wire.field(1, wire.field(1, name.encode()) + wire.field(3, value.encode()))
            + _OVERWRITE,
        )
        for name, value in headers.items()
    )
    return wire.field(2, options)


def streamed(body: bytes) -> Iterator[bytes]:
    """A body in pieces, as Envoy wants it when it streams."""
    for at in range(0, max(1, len(body)), _PIECE):
        piece = wire.field(1, body[at : at + _PIECE])
        last = b"\x10\x01" if at + _PIECE >= len(body) else b""
        mutation = wire.field(3, wire.field(3, piece + last))
        yield wire.field(TO_BODY, wire.field(1, mutation))


def struct_of(content: dict[str, Any]) -> bytes:
    """A google.protobuf.Struct of texts and structs."""
    out = b""
    for key, value in content.items():
        inner = (
            wire.field(5, struct_of(value))
            if isinstance(value, dict)
            else wire.field(3, value.encode())
        )
        out += wire.field(1, wire.field(1, key.encode()) + wire.field(2, inner))
    return out

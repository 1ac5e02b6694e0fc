"""Request parameters of a `ModelInferRequest`: read, and given another value."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tessera_gateway.fleet import wire

_GIVEN = 4
"""Field of ModelInferRequest, a map."""
_BOOL, _INT64, _STRING, _DOUBLE, _UINT64 = 1, 2, 3, 4, 5
"""Fields of InferParameter, of which one has the value."""


def read_parameters(data: bytes) -> dict[str, object]:
    """A request's parameters; of one without a value, `None`.

    Raises:
        wire.Malformed: the bytes are no request.
    """
    every = wire.fields(memoryview(data))
    return dict(_entry(wire.message(value)) for number, value in every if number == _GIVEN)


def with_integers(data: bytes, parameters: Mapping[str, int]) -> bytes:
    """The same request with parameters in place of those of the same names: of a map's entries, the
    last one counts. Their types are those that tritonclient sends.
    """
    entries = []
    for name, value in parameters.items():
        kind = _UINT64 if name == "priority" else _INT64
        entry = wire.field(1, name.encode()) + wire.field(2, wire.number(kind, value))
        entries.append(wire.field(_GIVEN, entry))
    return b"".join((data, *entries))


def _entry(entry: memoryview) -> tuple[str, object]:
    name, found = "", None
    for number, value in wire.fields(entry):
        if number == 1:
            name = wire.text(value)
        elif number == 2:
            for kind, each in wire.fields(wire.message(value)):
                found = _value(kind, each)
    return name, found


def _value(kind: int, value: int | memoryview) -> object:
    """Of an InferParameter; `None` for a kind that there is not."""
    if kind == _STRING:
        return wire.text(value)
    if kind == _DOUBLE and not isinstance(value, int) and len(value) == 8:
        return struct.unpack("<d", value)[0]
    if kind in (_BOOL, _INT64, _UINT64) and isinstance(value, int):
        value %= 2**64
        signed = value - 2**64 if value >= 2**63 else value
        return {_BOOL: bool(value), _INT64: signed, _UINT64: value}[kind]
    return None

"""Triton's statistics of several workers as those of one server: counts and times are sums.

perf_analyzer asks for them before and after it sends, and compares the difference with what it has
sent. https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tessera_gateway.fleet import wire

Schema = Mapping[int, tuple[str, Any]]
"""Name and kind of each field by number: `int`, `str`, a schema, or a schema in a list if it is
repeated.
"""

_DURATION: Schema = {1: ("count", int), 2: ("ns", int)}


def _durations(*names: str, first: int = 1) -> dict[int, tuple[str, Any]]:
    return {number: (name, _DURATION) for number, name in enumerate(names, first)}


_COMPUTE = ("compute_input", "compute_infer", "compute_output")
_INFER = _durations("success", "fail", "queue", *_COMPUTE, "cache_hit", "cache_miss")
_BATCH = {1: ("batch_size", int), **_durations(*_COMPUTE, first=2)}
_MEMORY = {1: ("type", str), 2: ("id", int), 3: ("byte_size", int)}
_RESPONSE = _durations(*_COMPUTE[1:], "success", "fail", "empty_response", "cancel")
_MODEL: Schema = {
    1: ("name", str),
    2: ("version", str),
    3: ("last_inference", int),
    4: ("inference_count", int),
    5: ("execution_count", int),
    6: ("inference_stats", _INFER),
    7: ("batch_stats", [_BATCH]),
    8: ("memory_usage", [_MEMORY]),
    9: ("response_stats", [{1: ("key", str), 2: ("value", _RESPONSE)}]),
}
STATISTICS: Schema = {1: ("model_stats", [_MODEL])}
"""Of ModelStatisticsResponse."""

_KEYS = ("name", "version", "batch_size", "type", "id", "key")
"""What tells the elements of a list apart."""


def merge_messages(answers: Sequence[bytes]) -> bytes:
    """Of ModelStatisticsResponse.

    Raises:
        wire.Malformed: one of them is none.
    """
    return _encode(_merged([_decode(memoryview(a), STATISTICS) for a in answers]), STATISTICS)


def merge_json(answers: Sequence[bytes]) -> bytes:
    """Of answers over HTTP.

    Raises:
        ValueError: one of them is no JSON.
    """
    return json.dumps(_merged([json.loads(answer) for answer in answers])).encode()


def _merged(values: Sequence[Any], name: str = "") -> Any:
    first = values[0]
    if isinstance(first, dict):
        names = dict.fromkeys(key for value in values for key in value)
        return {n: _merged([value[n] for value in values if n in value], n) for n in names}
    if isinstance(first, list):
        alike: dict[tuple[Any, ...], list[Any]] = {}
        for each in (element for value in values for element in value):
            alike.setdefault(tuple(each.get(key) for key in _KEYS), []).append(each)
        return [_merged(elements) for elements in alike.values()]
    if name in _KEYS or not isinstance(first, int):
        return first
    return max(values) if name == "last_inference" else sum(values)


def _decode(data: memoryview, schema: Schema) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, value in wire.fields(data):
        if number not in schema:
            continue
        name, kind = schema[number]
        if isinstance(kind, list):
            found.setdefault(name, []).append(_decode(wire.message(value), kind[0]))
        elif kind is str:
            found[name] = str(wire.message(value), "utf-8")
        else:
            found[name] = value if kind is int else _decode(wire.message(value), kind)
    return found


def _encode(value: Mapping[str, Any], schema: Schema) -> bytes:
    parts = []
    for number, (name, kind) in schema.items():
        if name not in value:
            continue
        elements = value[name] if isinstance(kind, list) else [value[name]]
        for each in elements:
            if kind is int:
                parts.append(wire.number(number, each))
            elif kind is str:
                parts.append(wire.field(number, each.encode()))
            else:
                parts.append(
                    wire.field(number, _encode(each, kind[0] if isinstance(kind, list) else kind))
                )
    return b"".join(parts)

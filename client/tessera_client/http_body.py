"""Bodies of KServe v2 over HTTP, with arrays as bytes behind the JSON."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from tessera.types import Array
from tessera_client.wire import Call, datatype_of, numpy_of

LENGTH = "Inference-Header-Content-Length"
"""The header that says how long the JSON is."""


def written(call: Call, timeout: float) -> tuple[bytes, dict[str, str]]:
    """A request's body, and the headers that belong to it; `timeout` in seconds."""
    bodies = {name: _bytes_of(array) for name, array in call.inputs.items()}
    head = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype_of(array),
                "parameters": {"binary_data_size": len(bodies[name])},
            }
            for name, array in call.inputs.items()
        ],
        "outputs": [{"name": n, "parameters": {"binary_data": True}} for n in call.outputs],
        "parameters": call.settings(timeout),
    }
    text = json.dumps(head).encode()
    headers = {LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}
    return b"".join([text, *bodies.values()]), headers


def read(content: bytes, length: str | None, names: tuple[str, ...]) -> dict[str, Array]:
    """The arrays of an answer.

    Args:
        content: its body.
        length: the value of the header `LENGTH`; `None` if all of it is JSON.
        names: of the arrays that were asked for.

    Raises:
        ValueError: it is not of that form, or lacks one of them.
    """
    end = len(content) if length is None else int(length)
    head, rest = json.loads(content[:end]), memoryview(content)[end:]
    arrays, position = {}, 0
    for tensor in head["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        shape, datatype = tensor["shape"], tensor["datatype"]
        if size is None:
            arrays[tensor["name"]] = _of_json(tensor["data"], datatype).reshape(shape)
            continue
        data = bytes(rest[position : position + size])
        arrays[tensor["name"]] = _of_bytes(data, datatype).reshape(shape)
        position += size
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"the answer has no {missing[0]}")
    return {name: arrays[name] for name in names}


def sentence_of(content: bytes) -> str:
    """What an answer says that is an error."""
    try:
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return content.decode(errors="replace") or "no reason was given"


def _bytes_of(array: Array) -> bytes:
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(text)) + text for text in array.reshape(-1))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _of_bytes(data: bytes, datatype: str) -> Array:
    if datatype != "BYTES":
        return np.frombuffer(data, numpy_of(datatype))
    texts, position = [], 0
    while position < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        position += 4 + size
        texts.append(data[position - size : position])
    return _objects(texts)


def _of_json(data: Any, datatype: str) -> Array:
    flat = np.asarray(data, object).reshape(-1)
    if datatype != "BYTES":
        return flat.astype(numpy_of(datatype))
    return _objects([text.encode() for text in flat])


def _objects(texts: list[bytes]) -> Array:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array

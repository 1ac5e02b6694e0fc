"""Protobuf's wire format, as far as a router needs it of `ModelInferRequest`.

A request with pictures has megabytes, nearly all of them in a few tensors. Reading the tags around
them takes microseconds, and no tensor is copied. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_MODEL, _INPUT, _WANTED, _RAW = 1, 5, 6, 7
"""Fields of ModelInferRequest."""
_OUTPUT, _RESULT = 5, 6
"""`outputs` and `raw_output_contents` of ModelInferResponse."""
_NAME, _DATATYPE, _SHAPE, _PARAMETERS, _CONTENTS = 1, 2, 3, 4, 5
"""Fields of InferInputTensor."""
_UINT32S, _BYTES = 4, 8
_TYPED = {2: np.int32, 3: np.int64, 4: np.uint8, 6: np.float32}
"""Fields of InferTensorContents, and what Tessera's contract has of them."""
_FIXED = {1: 8, 5: 4}
_VARINT, _LENGTH = 0, 2


class Malformed(ValueError):
    """The bytes are no protobuf message."""


@dataclass(frozen=True)
class Tensor:
    """An input of a request.

    Attributes:
        shape: with the batch dimension.
        data: its bytes as KServe's binary extension has them; `None` if it has none here.
        datatype: as the request names it; empty where the contract's has been checked.
    """

    name: str
    shape: tuple[int, ...]
    data: memoryview | bytes | None
    datatype: str = ""


@dataclass(frozen=True)
class Inference:
    """A `ModelInferRequest`.

    Attributes:
        raw: whether every input's bytes are in `raw_input_contents`.
        shared: whether an input or output has parameters by which clients name shared memory.
        classified: whether an output is to be a classification.
    """

    model: str
    inputs: tuple[Tensor, ...]
    raw: bool
    shared: bool
    classified: bool = False


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field of a message, in order.

    Raises:
        Malformed: these bytes are none.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _LENGTH:
            size, at = _varint(data, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise Malformed(f"wire type {kind}")
        if at + size > end:
            raise Malformed("it ends inside a field")
        yield tag >> 3, data[at : at + size]
        at += size


def field(number: int, value: bytes) -> bytes:
    """A field of bytes, a text or a message."""
    return _encoded(number << 3 | _LENGTH) + _encoded(len(value)) + value


def number(field_number: int, value: int) -> bytes:
    """A field of an unsigned integer."""
    return _encoded(field_number << 3 | _VARINT) + _encoded(value)


def message(value: int | memoryview) -> memoryview:
    """The bytes of a field.

    Raises:
        Malformed: it is a number.
    """
    return _bytes(value)


def text(value: int | memoryview) -> str:
    """The text of a field.

    Raises:
        Malformed: it is none.
    """
    try:
        return str(_bytes(value), "utf-8")
    except UnicodeDecodeError:
        raise Malformed("a name is not UTF-8") from None


def read_inference(data: bytes | memoryview) -> Inference:
    """A request's model and inputs.

    Raises:
        Malformed: the bytes are no such request.
    """
    model, heads, raws, shared = "", [], [], False
    wanted: set[str] = set()
    for number, value in fields(memoryview(data)):
        if number == _MODEL:
            model = text(value)
        elif number == _INPUT:
            heads.append(_message(value))
        elif number == _WANTED:
            wanted.update(_parameters_of(_message(value)))
        elif number == _RAW:
            raws.append(_bytes(value))
    tensors = []
    for index, head in enumerate(heads):
        tensor, has_parameters = _tensor(head, raws[index] if index < len(raws) else None)
        tensors.append(tensor)
        shared = shared or has_parameters
    shared = shared or any(name.startswith("shared_memory") for name in wanted)
    raw, classified = len(raws) == len(heads), "classification" in wanted
    return Inference(model, tuple(tensors), raw, shared, classified)


def with_text(data: bytes, name: str, text: str) -> bytes:
    """The same request with one more input, a BYTES tensor of one element.

    A repeated field's elements may lie anywhere in a message, so this one is simply behind the
    others. It needs a request that is `raw`.
    """
    encoded = text.encode()
    element = len(encoded).to_bytes(4, "little") + encoded
    return with_tensor(data, Tensor(name, (1, 1), element), "BYTES")


def with_tensor(data: bytes, tensor: Tensor, datatype: str) -> bytes:
    """See `with_text`, for any tensor that has data."""
    shape = b"".join(_encoded(side % 2**64) for side in tensor.shape)
    head = field(_NAME, tensor.name.encode()) + field(_DATATYPE, datatype.encode())
    raw = bytes(tensor.data or b"")
    return b"".join((data, field(_INPUT, head + field(_SHAPE, shape)), field(_RAW, raw)))


def first_text(result: bytes, index: int = 0) -> bytes:
    """The text in one of the outputs of a `ModelInferResponse`.

    Raises:
        Malformed: there is none.
    """
    every = fields(memoryview(result))
    raws = [_bytes(value) for number, value in every if number == _RESULT]
    if len(raws) <= index or len(raws[index]) < 4:
        raise Malformed("it has no such output")
    return bytes(raws[index][4:])


def output_text(result: bytes, name: str) -> bytes | None:
    """The text in an output of a `ModelInferResponse` by the output's name, if it has that.

    Raises:
        Malformed: these bytes are none.
    """
    found = output(result, name)
    if found is None:
        return None
    if len(found.data or b"") < 4:
        raise Malformed(f"its output {name} is no text")
    return bytes(found.data or b"")[4:]


def output(result: bytes, name: str) -> Tensor | None:
    """An output of a `ModelInferResponse` by its name, if it has that.

    Raises:
        Malformed: these bytes are none.
    """
    heads, raws = [], []
    for number, value in fields(memoryview(result)):
        if number == _OUTPUT:
            heads.append(_tensor(_message(value), None)[0])
        elif number == _RESULT:
            raws.append(_bytes(value))
    for head, raw in zip(heads, raws, strict=False):
        if head.name == name:
            return Tensor(name, head.shape, raw, head.datatype)
    return None


def request_of(model: str, texts: dict[str, str]) -> bytes:
    """A `ModelInferRequest` whose inputs are texts."""
    data = field(_MODEL, model.encode())
    for name, text in texts.items():
        data = with_text(data, name, text)
    return data


def response_of(model: str, name: str, text: str) -> bytes:
    """A `ModelInferResponse` with one output, a text."""
    encoded = text.encode()
    output = field(_NAME, name.encode()) + field(_DATATYPE, b"BYTES") + field(_SHAPE, b"\x01\x01")
    element = len(encoded).to_bytes(4, "little") + encoded
    head = field(_MODEL, model.encode()) + field(2, b"1")
    return head + field(_OUTPUT, output) + field(_RESULT, element)


def _tensor(head: memoryview, raw: memoryview | None) -> tuple[Tensor, bool]:
    name, datatype, shared, contents = "", "", False, None
    shape: tuple[int, ...] = ()
    for number, value in fields(head):
        if number == _NAME:
            name = text(value)
        elif number == _DATATYPE:
            datatype = text(value)
        elif number == _SHAPE:
            shape += _numbers(value)
        elif number == _PARAMETERS:
            shared = True
        elif number == _CONTENTS:
            contents = _message(value)
    data = raw if raw is not None or contents is None else _typed(contents)
    return Tensor(name, shape, data, datatype), shared


def _parameters_of(wanted: memoryview) -> Iterator[str]:
    """Names of the parameters of an InferRequestedOutputTensor."""
    return (
        text(value)
        for number, entry in fields(wanted)
        if number == 2
        for n, value in fields(_message(entry))
        if n == 1
    )


def _typed(contents: memoryview) -> bytes | None:
    """Contents that came as numbers or texts, as the bytes that they would be."""
    parts: list[bytes] = []
    for number, value in fields(contents):
        if number == _BYTES:
            text = bytes(_bytes(value))
            parts.append(len(text).to_bytes(4, "little") + text)
        elif number == _UINT32S and not isinstance(value, int):
            parts.append(_bytes_of_varints(value))
        elif number in _TYPED and number == 6:
            parts.append(bytes(_bytes(value)))
        elif number in _TYPED:
            parts.append(np.array(_numbers(value), np.int64).astype(_TYPED[number]).tobytes())
    return b"".join(parts) if parts else None


def _bytes_of_varints(packed: memoryview) -> bytes:
    """Packed varints below 256 as bytes: of two that belong together the first has the top bit."""
    each = np.frombuffer(packed, np.uint8)
    begins = np.ones(len(each), bool)
    begins[1:] = each[:-1] < 128
    if (each[~begins] != 1).any():
        raise Malformed("a value of UINT8 is above 255")
    return each[begins].tobytes()


def _numbers(value: int | memoryview) -> tuple[int, ...]:
    """Varints, packed or a single one, as signed integers of 64 bits."""
    if isinstance(value, int):
        return (_signed(value),)
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(_signed(number))
    return tuple(found)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _varint(data: memoryview | Sequence[int], at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        try:
            byte = data[at]
        except IndexError:
            raise Malformed("it ends inside a number") from None
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise Malformed("a number has more than ten bytes")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise Malformed("a field has a number instead of bytes")
    return value


_message = _bytes

"""The texts of one input: what they may be in JSON, and their bytes in KServe's binary extension,
each behind its length.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tessera.errors import InvalidInput, brief
from tessera_gateway.kserve.limits import Limits

_LENGTH = struct.Struct("<I")


def bounds(shape: Sequence[int], limits: Limits) -> tuple[int, int]:
    """Fewest and most bytes of a BYTES tensor."""
    count = math.prod(shape)
    least = _LENGTH.size * count
    return least, least + min(limits.text * count, limits.texts)


def check_texts(
    place: str, name: str, data: bytes, shape: Sequence[int], limits: Limits
) -> list[str]:
    """The texts in the bytes of a BYTES tensor: of each its length (4 bytes, little-endian), then
    itself.

    Args:
        place: of the input in the request, as errors have it.
        name: of the input.
        data: not fewer bytes than `bounds` has.
        shape: of the tensor.
        limits: how much it may bring.

    Raises:
        InvalidInput: the lengths are not those of what follows, or a text is too long or not UTF-8.
    """
    count, start = math.prod(shape), 0
    texts = []
    for index in range(count):
        field = f"{place} ({_element(name, index, count)})"
        others = count - index - 1
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        most = len(data) - start - _LENGTH.size * others
        if length > most or (length < most and not others):
            accepted = f"{'at most ' if others else ''}{most}, as many as follow"
            raise InvalidInput.described(field, f"says that its text has {length} bytes", accepted)
        _check_length(field, length, limits)
        try:
            texts.append(data[start : start + length].decode())
        except UnicodeDecodeError:
            raise InvalidInput.described(field, "is not UTF-8", "text in UTF-8") from None
        start += length
    return texts


def texts_from_json(field: str, raw: bytes, shape: Sequence[int], limits: Limits) -> bytes:
    """The bytes of a BYTES tensor of its JSON, nested in any way or flat.

    Raises:
        InvalidInput: it has something else than texts, or another number of them; or they are too
            long, or cannot be written in UTF-8.
    """
    count = math.prod(shape)
    if len(raw) > limits.texts:
        raise InvalidInput.described(
            field, f"has {len(raw)} bytes of JSON", f"at most {limits.texts}"
        )
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        accepted = "one text" if count == 1 else f"{count} texts"
        raise InvalidInput.described(field, "cannot be read", accepted) from None
    if count == 1:
        return text_bytes(field, _one_text(field, value), limits)
    values = list(_flat(value))
    if len(values) != count:
        raise InvalidInput.described(
            field, f"has {len(values)} values", f"{count}, as the shape says"
        )
    return b"".join(
        text_bytes(place, _text(place, each), limits)
        for index, each in enumerate(values)
        for place in [_element(field, index, count)]
    )


def text_bytes(field: str, text: str, limits: Limits) -> bytes:
    """The bytes of one text in a BYTES tensor.

    Raises:
        InvalidInput: the text is too long, or cannot be written in UTF-8.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise InvalidInput.described(field, "is not UTF-8", "text in UTF-8") from None
    _check_length(field, len(encoded), limits)
    return _LENGTH.pack(len(encoded)) + encoded


def _check_length(field: str, length: int, limits: Limits) -> None:
    if length > limits.text:
        raise InvalidInput.described(field, f"has {length} bytes", f"at most {limits.text} bytes")


def _element(name: str, index: int, count: int) -> str:
    """How errors name one of several texts, or the only one."""
    return name if count == 1 else f"{name}[{index}]"


def _one_text(field: str, value: Any) -> str:
    """The text inside any number of lists."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise InvalidInput.described(field, f"is {brief(value)}", "one text")
    return value


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInput(field, value, "a text")
    return value


def _flat(value: Any) -> Iterator[Any]:
    """What lists within lists hold, in order."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(reversed(value))
        else:
            yield value

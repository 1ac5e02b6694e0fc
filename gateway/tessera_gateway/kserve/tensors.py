"""The bytes of one input, as KServe's binary extension has them: checked shapes and sizes, and what
came as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from tessera.contract import TensorSpec
from tessera.errors import InvalidInput
from tessera_gateway.kserve.limits import Limits
from tessera_gateway.kserve.texts import bounds, texts_from_json

_DTYPES: dict[str, type[np.generic]] = {
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "UINT8": np.uint8,
}
_LARGEST = float(np.finfo(np.float32).max)
_FLAT = bytes.maketrans(b"[]", b"  ")


def _integers(dtype: type[np.signedinteger[Any]] | type[np.uint8]) -> Any:
    range_ = np.iinfo(dtype)
    return list[Annotated[int, msgspec.Meta(ge=int(range_.min), le=int(range_.max))]]


_NUMBERS = {
    "INT32": msgspec.json.Decoder(_integers(np.int32)),
    "INT64": msgspec.json.Decoder(_integers(np.int64)),
    "UINT8": msgspec.json.Decoder(_integers(np.uint8)),
    "FP32": msgspec.json.Decoder(list[Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]]),
}


def check_shape(field: str, shape: Any, spec: TensorSpec, limits: Limits) -> tuple[int, ...]:
    """A tensor's dimensions, behind the batch dimension those of the contract.

    Raises:
        InvalidInput: they are not, or their product is above any that would be passed on.
    """
    wanted = (1, *spec.dims)
    accepted = f"[{', '.join('n' if side == -1 else str(side) for side in wanted)}]"
    if not isinstance(shape, list) or len(shape) != len(wanted):
        raise InvalidInput(field, shape, accepted)
    for side, only in zip(shape, wanted, strict=True):
        if type(side) is not int or not 1 <= side <= limits.side or only not in (-1, side):
            raise InvalidInput(field, shape, f"{accepted}, n from 1 to {limits.side}")
    if math.prod(shape) > limits.body:
        raise InvalidInput(field, shape, f"{accepted}, at most {limits.body} values")
    if spec.dtype == "BYTES" and math.prod(shape) > limits.elements:
        raise InvalidInput(field, shape, f"{accepted}, at most {limits.elements} texts")
    return tuple(shape)


def binary_size(
    field: str, given: Any, spec: TensorSpec, shape: Sequence[int], limits: Limits
) -> int:
    """Bytes that a binary tensor brings, as `binary_data_size` says.

    Raises:
        InvalidInput: it is not what the shape needs.
    """
    if spec.dtype == "BYTES":
        least, most = bounds(shape, limits)
        if type(given) is not int or not least <= given <= most:
            raise InvalidInput(field, given, f"{least} to {most} bytes")
        return given
    needed = math.prod(shape) * np.dtype(_DTYPES[spec.dtype]).itemsize
    if type(given) is not int or given != needed:
        raise InvalidInput(field, given, f"{needed} bytes, as the shape and {spec.dtype} need")
    return given


def from_json(
    field: str, raw: bytes, spec: TensorSpec, shape: Sequence[int], limits: Limits
) -> bytes:
    """A tensor's bytes of its JSON, nested in any way or flat.

    Raises:
        InvalidInput: it has values of another type or range, or another number of them.
    """
    if spec.dims == (1,) and len(raw) > limits.part:
        raise InvalidInput.described(
            field, f"has {len(raw)} bytes of JSON", f"at most {limits.part}"
        )
    if spec.dtype == "BYTES":
        return texts_from_json(field, raw, shape, limits)
    try:
        numbers = _NUMBERS[spec.dtype].decode(b"[" + raw.translate(_FLAT) + b"]")
    except msgspec.MsgspecError as error:
        sentence = str(error).partition(" - at ")[0]
        raise InvalidInput.described(
            field, f"has a wrong value ({sentence})", f"values of {spec.dtype}"
        ) from None
    if len(numbers) != math.prod(shape):
        raise InvalidInput.described(
            field, f"has {len(numbers)} values", f"{math.prod(shape)}, as the shape says"
        )
    return np.array(numbers, _DTYPES[spec.dtype]).tobytes()

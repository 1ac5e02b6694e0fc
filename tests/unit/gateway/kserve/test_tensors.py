"""Numbers of JSON become the bytes that tritonclient would have sent."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tessera.contract import TensorSpec
from tessera.errors import InvalidInput
from tessera_gateway.kserve.limits import LIMITS
from tessera_gateway.kserve.tensors import from_json

PICTURE = TensorSpec("IMAGE", "UINT8", (-1, -1, 3))
NUMBERS = {
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
}


@given(
    array=arrays.arrays(np.uint8, st.tuples(st.just(1), *[st.integers(1, 5)] * 2, st.just(3))),
    flat=st.booleans(),
)
def test_pictures(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], flat: bool) -> None:
    text = json.dumps(array.reshape(-1).tolist() if flat else array.tolist()).encode()
    assert from_json("IMAGE", text, PICTURE, array.shape, LIMITS) == array.tobytes()


@pytest.mark.parametrize("datatype", NUMBERS)
@given(data=st.data())
def test_numbers(datatype: str, data: st.DataObject) -> None:
    value = data.draw(NUMBERS[datatype])
    dtype = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}[datatype]
    spec = TensorSpec("X", datatype, (1,))
    for form in ([value], [[value]], value):
        read = from_json("X", json.dumps(form).encode(), spec, (1, 1), LIMITS)
        assert read == np.array([value], dtype).tobytes()


def test_a_number_beyond_the_type_is_refused() -> None:
    spec = TensorSpec("GUIDANCE", "FP32", (1,))
    with pytest.raises(InvalidInput, match="GUIDANCE"):
        from_json("GUIDANCE", b"[1e39]", spec, (1, 1), LIMITS)

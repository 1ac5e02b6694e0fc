"""Request parameters, as tritonclient's protobuf has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tessera_gateway.fleet import wire
from tessera_gateway.fleet.given import read_parameters, with_integers

VALUES = {
    "bool_param": st.booleans(),
    "int64_param": st.integers(-(2**63), 2**63 - 1),
    "string_param": st.text(st.characters(codec="utf-8")),
    "double_param": st.floats(allow_nan=False),
    "uint64_param": st.integers(0, 2**64 - 1),
}
GIVEN = st.dictionaries(
    st.text(st.characters(codec="utf-8")),
    st.one_of(*(st.tuples(st.just(kind), values) for kind, values in VALUES.items())),
)


def request_of(parameters: dict[str, tuple[str, object]]) -> bytes:
    request = service_pb2.ModelInferRequest(model_name="edit", raw_input_contents=[b"x"])
    for name, (kind, value) in parameters.items():
        setattr(request.parameters[name], kind, value)
    return bytes(request.SerializeToString())


@given(GIVEN)
def test_they_are_read(parameters: dict[str, tuple[str, object]]) -> None:
    assert read_parameters(request_of(parameters)) == {n: v for n, (_, v) in parameters.items()}


@given(GIVEN)
def test_others_take_their_place(parameters: dict[str, tuple[str, object]]) -> None:
    new = with_integers(request_of(parameters), {"priority": 3, "job_priority": 2})
    request = service_pb2.ModelInferRequest.FromString(new)
    assert request.parameters["priority"].uint64_param == 3
    assert request.parameters["job_priority"].int64_param == 2
    assert request.raw_input_contents == [b"x"]
    kept = {n: v for n, (_, v) in parameters.items()}
    assert read_parameters(new) == {**kept, "priority": 3, "job_priority": 2}


def test_one_without_a_value_has_none() -> None:
    assert read_parameters(wire.field(4, wire.field(1, b"a"))) == {"a": None}


@pytest.mark.parametrize("entry", [b"\xff", wire.field(1, b"\xff"), wire.number(1, 1)])
def test_bytes_that_are_none(entry: bytes) -> None:
    with pytest.raises(wire.Malformed):
        read_parameters(wire.field(4, entry))

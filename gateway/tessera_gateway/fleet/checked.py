"""What a request over gRPC may bring: as much as one over HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from tessera.contract import MODELS, TensorSpec
from tessera.errors import InvalidInput, listing
from tessera_gateway.fleet import wire
from tessera_gateway.kserve.limits import LIMITS
from tessera_gateway.kserve.parameters import check_parameters
from tessera_gateway.kserve.tensors import binary_size, check_shape
from tessera_gateway.kserve.texts import check_texts

_OF_CLIENTS = "triton_enable_empty_final_response"
"""What tritonclient's C++ library, and so perf_analyzer, sends with every request."""


def check(read: wire.Inference, parameters: Mapping[str, object]) -> None:
    """Check a request of a public model.

    Args:
        read: the request.
        parameters: its own.

    Raises:
        InvalidInput: something in it is not accepted.
    """
    others = {
        name: v for name, v in parameters.items() if name != _OF_CLIENTS or type(v) is not bool
    }
    check_parameters(others, LIMITS)
    if read.classified:
        raise InvalidInput.described("outputs", "ask for a classification", "outputs as they are")
    known = {spec.name: spec for spec in MODELS[read.model].inputs}
    seen: set[str] = set()
    for number, tensor in enumerate(read.inputs):
        place = f"inputs[{number}]"
        if tensor.name not in known:
            raise InvalidInput(f"{place}.name", tensor.name, listing(known))
        if tensor.name in seen:
            raise InvalidInput.described(
                f"{place}.name", f"names {tensor.name} again", "each name once"
            )
        seen.add(tensor.name)
        _check_tensor(place, tensor, known[tensor.name])


def _check_tensor(place: str, tensor: wire.Tensor, spec: TensorSpec) -> None:
    if tensor.datatype != spec.dtype:
        raise InvalidInput(f"{place}.datatype", tensor.datatype, f"{spec.dtype} for {spec.name}")
    shape = check_shape(f"{place}.shape", list(tensor.shape), spec, LIMITS)
    if tensor.data is None:
        raise InvalidInput.described(f"{place} ({spec.name})", "has no data", "data")
    binary_size(f"the size of {place}", len(tensor.data), spec, shape, LIMITS)
    if spec.dtype == "BYTES":
        check_texts(place, spec.name, bytes(tensor.data), shape, LIMITS)

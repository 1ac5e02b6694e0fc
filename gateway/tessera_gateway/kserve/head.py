"""The JSON of an inference: what a client may say in it, and what Triton gets instead.

Nothing here sees a tensor that came as bytes. Keys that KServe does not have are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from tessera.contract import MODELS, ModelSpec, TensorSpec
from tessera.errors import InvalidInput, listing
from tessera_gateway.kserve.limits import LIMITS, Limits
from tessera_gateway.kserve.parameters import check_parameters
from tessera_gateway.kserve.tensors import binary_size, check_shape, from_json
from tessera_gateway.kserve.texts import text_bytes

_NOTHING = msgspec.Raw(b"null")
_Struct = TypeVar("_Struct", bound=msgspec.Struct)
JOB_ID = "JOB_ID"


class _Tensor(msgspec.Struct):
    """An input or a requested output, its fields not read yet."""

    name: str = ""
    datatype: str = ""
    shape: msgspec.Raw = _NOTHING
    parameters: msgspec.Raw = _NOTHING
    data: msgspec.Raw = _NOTHING


class _Inference(msgspec.Struct):
    inputs: list[_Tensor] = []
    outputs: list[_Tensor] = []
    parameters: msgspec.Raw = _NOTHING
    id: msgspec.Raw = _NOTHING


@dataclass(frozen=True)
class Input:
    """A checked input.

    Attributes:
        size: its bytes.
        data: these, or `None` if they are still to come.
    """

    spec: TensorSpec
    shape: tuple[int, ...]
    size: int
    data: bytes | None = None


@dataclass(frozen=True)
class Inference:
    """A checked inference.

    Attributes:
        outputs: names of those asked for, and whether as bytes; empty for all.
    """

    model: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, bool], ...] = ()
    parameters: dict[str, Any] | None = None
    id: str = ""

    @property
    def coming(self) -> int:
        """Bytes of tensors that are still to come."""
        return sum(each.size for each in self.inputs if each.data is None)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(each.size for each in self.inputs)

    def named(self, job_id: str) -> Inference:
        """The same, as the job `job_id` unless it has an id, or is none."""
        spec = _specs(MODELS[self.model].inputs).get(JOB_ID)
        present = any(each.spec.name == JOB_ID for each in self.inputs)
        if present or spec is None or self.model not in ("generate", "edit"):
            return self
        data = text_bytes(JOB_ID, job_id, LIMITS)
        return replace(self, inputs=(*self.inputs, Input(spec, (1, 1), len(data), data)))

    def to_json(self) -> bytes:
        """The head that Triton gets: every tensor comes as bytes behind it."""
        content: dict[str, Any] = {
            "inputs": [
                {
                    "name": each.spec.name,
                    "datatype": each.spec.dtype,
                    "shape": each.shape,
                    "parameters": {"binary_data_size": each.size},
                }
                for each in self.inputs
            ]
        }
        if self.id:
            content["id"] = self.id
        if self.parameters:
            content["parameters"] = self.parameters
        if self.outputs:
            content["outputs"] = [
                {"name": name, "parameters": {"binary_data": binary}}
                for name, binary in self.outputs
            ]
        return msgspec.json.encode(content)


def read_inference(model: str, text: bytes, limits: Limits) -> Inference:
    """An inference of a public model.

    Args:
        model: its name.
        text: the JSON, without binary tensors behind it.
        limits: how much it may bring.

    Raises:
        InvalidInput: something in it is not accepted.
    """
    content, spec = read_struct(text, _Inference, limits), MODELS[model]
    parameters = small_json("parameters", content.parameters, limits)
    identity = small_json("id", content.id, limits)
    if identity is not None and not isinstance(identity, str):
        raise InvalidInput("id", identity, "a text")
    return Inference(
        model,
        _inputs(content.inputs, spec, limits),
        _outputs(content.outputs, spec, limits),
        check_parameters(parameters, limits),
        identity or "",
    )


def read_struct(text: bytes, kind: type[_Struct], limits: Limits) -> _Struct:
    """JSON as a struct, without recursion into what it does not have.

    Raises:
        InvalidInput: it is no JSON, or of another form.
    """
    if text.count(b"{") > limits.objects:
        raise InvalidInput.described("the JSON", "has too many objects", f"{limits.objects}")
    try:
        return msgspec.json.decode(text, type=kind)
    except RecursionError:
        raise InvalidInput.described("the JSON", "is nested too deeply", "flat values") from None
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at ")
        field = place.strip("`").removeprefix("$.") or "the JSON"
        raise InvalidInput.described(
            field.replace("$", "the JSON"), f"has a wrong value ({problem})", "KServe v2"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput.described("the JSON", f"cannot be read ({error})", "JSON") from None


def small_json(field: str, raw: msgspec.Raw, limits: Limits) -> Any:
    """A field's value.

    Raises:
        InvalidInput: it is too large, or nested too deeply.
    """
    text = bytes(raw)
    if len(text) > limits.part:
        raise InvalidInput.described(
            field, f"has {len(text)} bytes", f"at most {limits.part} bytes"
        )
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidInput.described(field, "cannot be read", "a flat JSON value") from None


def _specs(specs: Sequence[TensorSpec]) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in specs}


def _inputs(given: list[_Tensor], spec: ModelSpec, limits: Limits) -> tuple[Input, ...]:
    known = _specs(spec.inputs)
    if not given:
        raise InvalidInput.described("inputs", "are missing", listing(known))
    _check_names("inputs", given, known)
    read = tuple(
        _input(f"inputs[{number}]", each, known[each.name], limits)
        for number, each in enumerate(given)
    )
    total = sum(each.size for each in read)
    if total > limits.body:
        raise InvalidInput.described("inputs", f"have {total} bytes", f"at most {limits.body}")
    return read


def _check_names(field: str, given: list[_Tensor], known: dict[str, TensorSpec]) -> None:
    seen: set[str] = set()
    for number, each in enumerate(given):
        place = f"{field}[{number}].name"
        if each.name not in known:
            raise InvalidInput(place, each.name, listing(known))
        if each.name in seen:
            raise InvalidInput.described(place, f"names {each.name} again", "each name once")
        seen.add(each.name)


def _input(place: str, given: _Tensor, spec: TensorSpec, limits: Limits) -> Input:
    if given.datatype != spec.dtype:
        raise InvalidInput(f"{place}.datatype", given.datatype, f"{spec.dtype} for {spec.name}")
    shape = check_shape(
        f"{place}.shape", small_json(f"{place}.shape", given.shape, limits), spec, limits
    )
    parameters = _tensor_parameters(place, given, ("binary_data_size",), limits)
    raw = bytes(given.data)
    if "binary_data_size" in parameters:
        field = f"{place}.parameters.binary_data_size"
        if raw != b"null":
            raise InvalidInput.described(field, "is given as well as data", "one of the two")
        size = binary_size(field, parameters["binary_data_size"], spec, shape, limits)
        return Input(spec, shape, size)
    if raw == b"null":
        raise InvalidInput.described(f"{place}.data", "is missing", "data or binary_data_size")
    data = from_json(f"{place}.data", raw, spec, shape, limits)
    return Input(spec, shape, len(data), data)


def _outputs(given: list[_Tensor], spec: ModelSpec, limits: Limits) -> tuple[tuple[str, bool], ...]:
    _check_names("outputs", given, _specs(spec.outputs))
    read = []
    for number, each in enumerate(given):
        place = f"outputs[{number}]"
        parameters = _tensor_parameters(place, each, ("binary_data",), limits)
        binary = parameters.get("binary_data", False)
        if not isinstance(binary, bool):
            raise InvalidInput(f"{place}.parameters.binary_data", binary, "true, false")
        read.append((each.name, binary))
    return tuple(read)


def _tensor_parameters(
    place: str, given: _Tensor, known: tuple[str, ...], limits: Limits
) -> dict[str, Any]:
    field = f"{place}.parameters"
    parameters = small_json(field, given.parameters, limits)
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInput(field, parameters, "an object")
    for name in parameters:
        if name.startswith("shared_memory"):
            raise InvalidInput.described(
                field, f"ask for shared memory ({name})", "tensors in the body of the request"
            )
        if name not in known:
            raise InvalidInput.described(field, f"have the key {name[:64]!r}", listing(known))
    return parameters

"""Triton's `generate` extension: one flat JSON object of inputs by name, which suits curl.

It has no shapes, so pictures and inputs of several values cannot be sent by it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tessera.contract import MODELS, TensorSpec
from tessera.errors import InvalidInput, brief, listing
from tessera_gateway.kserve.head import JOB_ID
from tessera_gateway.kserve.limits import Limits
from tessera_gateway.kserve.parameters import check_parameter, check_parameters
from tessera_gateway.kserve.tensors import from_json

_Flat = dict[str, msgspec.Raw]


def read_generate(model: str, text: bytes, limits: Limits) -> dict[str, Any]:
    """The object that is passed on: inputs of one value each, and request parameters.

    Raises:
        InvalidInput: something in it is not accepted.
    """
    if len(text) > limits.head:
        raise InvalidInput.described(
            "the JSON", f"has {len(text)} bytes", f"at most {limits.head} bytes"
        )
    try:
        flat = msgspec.json.decode(text, type=_Flat)
        values = {name: msgspec.json.decode(bytes(raw)) for name, raw in flat.items()}
    except RecursionError:
        raise InvalidInput.described("the JSON", "is nested too deeply", "flat values") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput.described("the JSON", f"cannot be read ({error})", "JSON") from None
    known = {spec.name: spec for spec in MODELS[model].inputs}
    for name, value in values.items():
        if name not in known:
            check_parameter(name, value)
            continue
        if known[name].dims != (1,):
            raise _shapeless(known[name])
        if isinstance(value, list | dict | None):
            raise InvalidInput.described(name, f"is {brief(value)}", "one value")
        from_json(name, bytes(flat[name]), known[name], (1, 1), limits)
    check_parameters({k: v for k, v in values.items() if k not in known}, limits)
    missing = [s.name for s in known.values() if not s.optional and s.name not in values]
    if missing:
        raise InvalidInput.described(missing[0], "is missing", listing(known))
    return values


def _shapeless(spec: TensorSpec) -> InvalidInput:
    """The error of an input that needs a shape."""
    if spec.dtype == "UINT8":
        return InvalidInput.described(
            spec.name, "is a picture, which has no shape here", "pictures in a call of infer"
        )
    return InvalidInput.described(
        spec.name, "has several values, which have no shape here", "lists in a call of infer"
    )


def job_of(model: str, values: dict[str, Any], job_id: str) -> str:
    """The job's id; `job_id` is put in if a picture is asked for without one."""
    if model in ("generate", "edit"):
        values.setdefault(JOB_ID, job_id)
        return str(values[JOB_ID])
    return ""


def write_generate(values: dict[str, Any]) -> bytes:
    """The JSON that Triton gets."""
    return msgspec.json.encode(values)

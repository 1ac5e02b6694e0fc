"""Bodies as models, and what is wrong with them as one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from tessera.errors import brief, listing
from tessera_gateway.errors import ApiError, unfit

M = TypeVar("M", bound=BaseModel)


def from_json(model: type[M], body: bytes) -> M:
    """A JSON body as a model.

    Raises:
        ApiError: it is no JSON, too deeply nested, or a field is not accepted.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(model, error) from None


def from_fields(model: type[M], fields: Mapping[str, Any]) -> M:
    """The fields of a form as a model.

    Raises:
        ApiError: a field is not accepted.
    """
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise _refusal(model, error) from None


def _refusal(model: type[BaseModel], error: ValidationError) -> ApiError:
    """The first of the errors, as this server writes them."""
    first = error.errors(include_url=False)[0]
    param, kind, said = _path(first["loc"]), first["type"], first["msg"]
    if kind == "json_invalid":
        return ApiError(400, f"the body is no JSON: {said}", "invalid_json")
    if kind == "missing":
        return ApiError(400, f"{param} is missing", "missing_required_parameter", param=param)
    if kind == "extra_forbidden":
        accepted = listing(_known(model, first["loc"]))
        refusal = unfit(param, "is no field here", accepted)
        refusal.content["code"] = "unknown_parameter"
        return refusal
    accepted = re.sub(r"^(Input|String|Value) should (be |have |match )?", "", said)
    message = f"{param or 'the body'} is {brief(first['input'])}; accepted: {accepted}"
    return ApiError(400, message, "invalid_value", param=param or None)


def _path(location: Sequence[str | int]) -> str:
    """`tessera.loras[0].weight`."""
    parts = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location)
    return parts.removeprefix(".")


def _known(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The fields that there are where an unknown one stands."""
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `list[Model]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)

"""Values out of a request's inputs: numpy arrays with their leading batch dimension of 1, keyed by
the contract's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from tessera.errors import InvalidInput
from tessera.types import Array

Inputs = Mapping[str, Array]
T = TypeVar("T", bound=BaseModel)


def text_of(inputs: Inputs, name: str, default: str, limit: int, accepted: str = "") -> str:
    """A text of at most `limit` characters, or `default` if it was left out.

    Raises:
        InvalidInput: it is longer, or not UTF-8; `accepted` says what would do.
    """
    if name not in inputs:
        return default
    raw = scalar_of(inputs[name])
    accepted = accepted or f"at most {limit} characters of UTF-8"
    try:
        text = raw.decode() if isinstance(raw, bytes) else str(raw)
    except UnicodeDecodeError as error:
        raise InvalidInput(name, f"not UTF-8 at byte {error.start}", accepted) from None
    if len(text) > limit:
        raise InvalidInput(name, text, accepted)
    return text


def scalar_of(array: Array) -> Any:
    """The first element."""
    return np.asarray(array).reshape(-1)[0]


def pixels_of(picture: Array) -> str:
    """The size of a picture (h, w, ...) as errors say it."""
    height, width = picture.shape[:2]
    return f"{width} x {height} pixels"


def choices_of(inputs: Inputs, name: str, model: type[T], most: int) -> list[T]:
    """The elements of a JSON list; none if it was left out.

    Raises:
        InvalidInput: it is no list, has more than `most` elements, or one does not fit the model.
    """
    text = text_of(inputs, name, "[]", 100_000)
    accepted = (
        f"a JSON list of at most {most} objects with the keys {', '.join(model.model_fields)}"
    )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput(name, text, accepted) from None
    if not isinstance(content, list) or len(content) > most:
        value = f"a list of {len(content)}" if isinstance(content, list) else text
        raise InvalidInput(name, value, accepted)
    return [_choice(f"{name}[{i}]", item, model, accepted) for i, item in enumerate(content)]


def _choice(name: str, item: object, model: type[T], accepted: str) -> T:
    try:
        return model.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([name, *map(str, first["loc"])])
        message = f"{first['msg'].lower()}, in {accepted}"
        raise InvalidInput(field, first["input"], message) from None

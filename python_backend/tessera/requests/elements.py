"""The elements of LORAS and CONTROLS: JSON objects that pydantic checks.

What it finds wrong is said in the words of the contract: the key, its value, what is accepted.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tessera.errors import InvalidInput, brief
from tessera.requests.fields import Inputs, text_of

T = TypeVar("T", bound=BaseModel)

_LONGEST = 100_000
"""Characters of a list."""
_TYPES = {
    "string": "a text",
    "number": "a number",
    "integer": "an integer",
    "boolean": "true or false",
    "null": "null",
}
_PLAIN_KEY = re.compile(r"[\w-]{1,40}")


def elements_of(inputs: Inputs, name: str, model: type[T], most: int) -> list[T]:
    """The elements of a JSON list; none if it was left out.

    Raises:
        InvalidInput: it is no list, has more than `most` elements, or one does not fit the model.
    """
    text = text_of(inputs, name, "[]", _LONGEST)
    accepted = f"a JSON list of at most {most} objects with the keys {_keys(model)}"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput(name, text, accepted) from None
    if not isinstance(content, list):
        raise InvalidInput(name, text, accepted)
    if len(content) > most:
        raise InvalidInput.described(name, f"has {len(content)} elements", accepted)
    return [_element(f"{name}[{index}]", item, model) for index, item in enumerate(content)]


def _element(field: str, item: object, model: type[T]) -> T:
    if not isinstance(item, dict):
        raise InvalidInput(field, item, f"an object with the keys {_keys(model)}")
    for key in item:  # first, since a key that is missing may follow from one that is misspelt
        if key not in model.model_fields:
            raise _unknown_key(field, key, model)
    try:
        return model.model_validate(item)
    except ValidationError as error:
        raise _invalid(field, error.errors()[0], model) from None


def _invalid(field: str, error: ErrorDetails, model: type[BaseModel]) -> InvalidInput:
    key = str(error["loc"][0])
    schema: Mapping[str, Any] = model.model_json_schema()["properties"][key]
    if error["type"] == "missing":
        return InvalidInput.described(f"{field}.{key}", "is missing", _words(schema))
    return InvalidInput(f"{field}.{key}", error["input"], _words(schema))


def _unknown_key(field: str, key: str, model: type[BaseModel]) -> InvalidInput:
    close = difflib.get_close_matches(key, model.model_fields, n=1)
    accepted = "; close: ".join([_keys(model), *close])
    if _PLAIN_KEY.fullmatch(key):
        return InvalidInput.described(f"{field}.{key}", "is not a key", accepted)
    return InvalidInput.described(field, f"has the key {brief(key)}", accepted)


def _keys(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)


def _words(schema: Mapping[str, Any]) -> str:
    """What a JSON schema accepts."""
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if {"minimum", "maximum"} <= set(schema):
        return f"a number from {schema['minimum']:g} to {schema['maximum']:g}"
    return _TYPES[schema["type"]]

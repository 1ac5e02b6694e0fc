"""Request parameters: few, flat, and those that Triton reads itself of the type that it expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tessera.contract.limits import PRIORITIES
from tessera.errors import InvalidInput
from tessera_gateway.kserve.limits import Limits

_MAX_NAME = 64
_MAX_INTEGER = 2**63 - 1


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_INTEGER


def _identity(value: Any) -> bool:
    return _count(value) or (isinstance(value, str) and len(value) <= _MAX_NAME)


_KNOWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sequence_id": (_identity, "an integer of 0 and above, or a short text"),
    "sequence_start": (_flag, "true, false"),
    "sequence_end": (_flag, "true, false"),
    "binary_data_output": (_flag, "true, false"),
    "priority": (_count, "an integer of 0 and above"),
    "timeout": (_count, "an integer of 0 and above, in microseconds"),
}


def check_parameters(given: Any, limits: Limits) -> dict[str, Any]:
    """Request parameters.

    Raises:
        InvalidInput: there are too many, or one is not of a type that is passed on.
    """
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidInput("parameters", given, "an object")
    if len(given) > limits.parameters:
        raise InvalidInput.described(
            "parameters", f"have {len(given)} keys", f"at most {limits.parameters}"
        )
    for name, value in given.items():
        check_parameter(name, value)
    return given


def ranked(parameters: dict[str, Any], highest: int | None) -> dict[str, Any]:
    """The same with a priority that the caller may have: for Triton's queues, and for the models.

    Args:
        parameters: of a request.
        highest: priority that its caller has (1 is first), or `None` for any.
    """
    given = parameters.get("priority")
    asked = given if isinstance(given, int) and given > 0 else highest
    if asked is None:
        return parameters
    priority = min(max(asked, highest or 1), PRIORITIES)
    return {**parameters, "priority": priority, "job_priority": priority}


def check_parameter(name: str, value: Any) -> None:
    """One request parameter.

    Raises:
        InvalidInput: its name is too long, or it is not of a type that is passed on.
    """
    if not 1 <= len(name) <= _MAX_NAME:
        raise InvalidInput.described(
            "parameters", f"have the key {name[:64]!r}", f"names of 1 to {_MAX_NAME} characters"
        )
    field = f"parameters.{name}"
    if name.startswith("triton_"):
        raise InvalidInput.described(field, "belongs to Triton itself", "other names")
    if name in _KNOWN:
        accepts, accepted = _KNOWN[name]
        if not accepts(value):
            raise InvalidInput(field, value, accepted)
    elif isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise InvalidInput(field, value, "an integer of 64 bits")
    elif not isinstance(value, str | float):
        raise InvalidInput(field, value, "a text, a number, true or false")

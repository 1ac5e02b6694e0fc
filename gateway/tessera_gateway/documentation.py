"""What the OpenAPI page says of errors and events."""

from __future__ import annotations

from typing import Any

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
"""A server-sent event; its data is JSON."""
_MEANINGS = {
    400: "A field is not accepted.",
    401: "The key is missing or unknown.",
    404: "There is no such thing.",
    409: "Somebody cancelled the job.",
    413: "The body is too large.",
    415: "The body is of another media type.",
    429: "A limit of the key is reached.",
    503: "The server is busy or restarting.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers that are errors, for `responses` of a route."""
    content = {"application/json": {"schema": _ERROR}}
    return {n: {"description": _MEANINGS[n], "content": content} for n in statuses}

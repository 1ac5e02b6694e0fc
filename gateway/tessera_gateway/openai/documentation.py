"""What the OpenAPI page says of the routes: bodies, examples and answers.

Bodies are read by hand (in a thread if they are large, and only for a known caller), so FastAPI
does not know their form by itself.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tessera_gateway.documentation import EVENT, errors
from tessera_gateway.openai.schemas import EditFields, EditRequest, GenerationRequest

_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)


def schema_of(model: type[BaseModel], **more: Any) -> dict[str, Any]:
    """A model's JSON schema in one piece, with `more` properties."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})
    schema["properties"] |= more
    whole: dict[str, Any] = _inlined(schema, parts)
    return whole


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """A schema with its parts in place of the references to them."""
    if isinstance(schema, list):
        return [_inlined(each, parts) for each in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if reference:
        rest = {k: v for k, v in schema.items() if k != "$ref"}
        return _inlined(parts[reference.rpartition("/")[2]] | rest, parts)
    return {name: _inlined(each, parts) for name, each in schema.items()}


_FILE = {"type": "string", "format": "binary"}
_PICTURES = {
    "description": "The pictures; with `stream`, events as they come.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["created", "data", "size", "quality", "output_format", "usage"],
            }
        },
        "text/event-stream": {"schema": EVENT},
    },
}
_OBJECT = {"description": "It.", "content": {"application/json": {"schema": {"type": "object"}}}}
_DRAWS = errors(400, 401, 404, 409, 413, 415, 429, 503)

MODELS: dict[str, Any] = {"responses": {200: _OBJECT, **errors(401, 503)}}
MODEL: dict[str, Any] = {"responses": {200: _OBJECT, **errors(401, 404, 503)}}
GENERATIONS: dict[str, Any] = {
    "responses": {200: _PICTURES, **_DRAWS},
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": schema_of(GenerationRequest),
                    "examples": {
                        "a picture": {
                            "value": {
                                "prompt": "a large red circle at the left on a blue background"
                            }
                        },
                        "four with a LoRA": {
                            "value": {
                                "prompt": "a large green square in the center",
                                "n": 4,
                                "tessera": {
                                    "seed": 7,
                                    "steps": 10,
                                    "loras": [{"name": "outline", "weight": 0.8}],
                                },
                            }
                        },
                        "a stream with previews": {
                            "value": {
                                "prompt": "a medium blue triangle at the right",
                                "stream": True,
                                "partial_images": 2,
                            }
                        },
                    },
                }
            },
        }
    },
}
EDITS: dict[str, Any] = {
    "responses": {200: _PICTURES, **_DRAWS},
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": schema_of(EditFields, image=_FILE, mask=_FILE)},
                "application/json": {
                    "schema": schema_of(EditRequest),
                    "examples": {
                        "all of a picture": {
                            "value": {
                                "prompt": "a small white star in the center on a black background",
                                "images": [{"image_url": _PIXEL}],
                            }
                        }
                    },
                },
            },
        }
    },
}

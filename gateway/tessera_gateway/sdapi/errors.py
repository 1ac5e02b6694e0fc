"""Errors as FastAPI has them, which webui is made with: `{"detail": "a sentence"}`."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tessera.errors import InvalidInput, brief
from tessera_gateway.errors import api_error

_FIELDS = {
    "PROMPT": "prompt",
    "NEGATIVE_PROMPT": "negative_prompt",
    "SEED": "seed",
    "STEPS": "steps",
    "GUIDANCE": "cfg_scale",
    "WIDTH": "width",
    "HEIGHT": "height",
    "SCHEDULER": "sampler_name",
    "STRENGTH": "denoising_strength",
    "IMAGE": "init_images[0]",
    "MASK": "mask",
    "LORAS": "<lora> of prompt",
    "CONTROLS": "alwayson_scripts.controlnet.args",
    "CONTROL_IMAGES": "alwayson_scripts.controlnet.args",
    "PADDING_MASK_CROP": "inpaint_full_res_padding",
    "MASK_FILL": "inpainting_fill",
    "EDIT_QUALITY": "tessera.edit_quality",
    "MODE": "tessera.mode",
    "MASK_FEATHER": "tessera.mask_feather",
    "MASK_TONE": "tessera.mask_tone",
}
"""Fields of requests by input of the contract."""
_SCHEMA = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["detail"],
            "properties": {"detail": {"type": "string"}},
        }
    }
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": _SCHEMA}
    for status, description in {
        400: "A field is not accepted.",
        401: "The key is missing or unknown.",
        409: "Somebody cancelled the job.",
        413: "The body is too large.",
        415: "The body is of another media type.",
        422: "A script is not here, or a parameter of the query is not accepted.",
        429: "A limit of the key is reached.",
        503: "The server is busy or restarting.",
    }.items()
}
"""For the OpenAPI page."""


class DetailRoute(APIRoute):
    """A route whose errors have that form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own, with its errors answered."""
        handle = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return JSONResponse({"detail": _parameter(error)}, 422)
            except Exception as error:
                known = api_error(error)
                content = {"detail": sentence(error) or str(known)}
                return JSONResponse(content, known.status, known.headers)

        return answered


def _parameter(error: RequestValidationError) -> str:
    """What is wrong with a parameter of the query."""
    first = error.errors()[0]
    return f"{first['loc'][-1]} is {brief(first.get('input'))}; accepted: {first['msg']}"


def sentence(error: Exception) -> str | None:
    """What an error of the server is called where fields have webui's names."""
    if not isinstance(error, InvalidInput) or not error.field:
        return None
    name = re.split(r"[\[.]", error.field, maxsplit=1)[0]
    return str(error).replace(name, _FIELDS.get(name, name), 1)

"""Bodies of requests, in JSON or as a form, with their pictures as they were sent."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.requests import Request

from tessera_gateway.errors import ApiError, invalid, unfit
from tessera_gateway.openai.schemas import EditFields, EditRequest, GenerationRequest
from tessera_gateway.openai.validation import from_fields, from_json
from tessera_gateway.state import gateway_of

M = TypeVar("M", bound=BaseModel)
LARGE = 100_000
"""Bytes of JSON that are read in a thread."""
MAX_FILES, MAX_FIELDS = 8, 100
IMAGES = ("image", "image[]")
MASK = "mask"
FORM = "multipart/form-data"
_EXTRA = re.compile(r"tessera\[(\w+)\]")

Sent = bytes | str
"""A picture's file, or its data URL."""


@dataclass(frozen=True)
class SentEdit:
    """An edit as it was sent."""

    fields: EditFields
    images: Sequence[Sent]
    mask: Sent | None


async def read_generation(request: Request) -> GenerationRequest:
    """The body of a generation.

    Raises:
        ApiError: it is not accepted.
    """
    return await _read_json(request, GenerationRequest)


async def read_edit(request: Request) -> SentEdit:
    """The body of an edit.

    Raises:
        ApiError: it is not accepted.
    """
    if _media_type(request) == FORM:
        return await _read_form(request)
    body = await _read_json(request, EditRequest)
    urls = [image.image_url for image in body.images]
    return SentEdit(body, urls, body.mask.image_url if body.mask else None)


async def _read_json(request: Request, model: type[M]) -> M:
    media_type = _media_type(request)
    if media_type and media_type != "application/json" and not media_type.endswith("+json"):
        message = f"the body is {media_type}; accepted: application/json"
        raise ApiError(415, message, "unsupported_media_type")
    body = await request.body()
    if len(body) < LARGE:
        return from_json(model, body)
    return await gateway_of(request).in_thread(partial(from_json, model, body))


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read_form(request: Request) -> SentEdit:
    most = gateway_of(request).settings.max_body
    limits = {"max_files": MAX_FILES, "max_fields": MAX_FIELDS, "max_part_size": most}
    async with request.form(**limits) as form:
        texts: dict[str, Any] = {}
        files: dict[str, list[bytes]] = {name: [] for name in (*IMAGES, MASK)}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in files:
                    raise unfit(name, "is a file", ", ".join(files))
                files[name].append(await value.read())
            elif name in files:
                raise unfit(name, "is no file", "a file in the form")
            elif name in texts:
                raise unfit(name, "is there twice", "each field once")
            else:
                texts[name] = value
    fields = from_fields(EditFields, _with_extra(texts))
    if len(files[MASK]) > 1:
        raise unfit(MASK, "is there twice", "one file")
    mask = files[MASK][0] if files[MASK] else None
    return SentEdit(fields, [file for name in IMAGES for file in files[name]], mask)


def _with_extra(texts: dict[str, Any]) -> dict[str, Any]:
    """Fields with `tessera` as an object: it is JSON, or comes as `tessera[seed]` and the like,
    which is how OpenAI's client writes `extra_body` into a form.
    """
    extra = {m[1]: texts.pop(name) for name in list(texts) if (m := _EXTRA.fullmatch(name))}
    if "tessera" in texts:
        try:
            content = json.loads(texts["tessera"])
        except (ValueError, RecursionError):
            raise invalid("tessera", texts["tessera"], "a JSON object") from None
        if not isinstance(content, dict):
            raise invalid("tessera", texts["tessera"], "a JSON object")
        extra = content | extra
    deeper = next((name for name in texts if name.startswith("tessera[")), None)
    if deeper:
        raise unfit(deeper, "is a list in a form", "one field tessera with JSON")
    return texts | ({"tessera": extra} if extra else {})

"""Bodies of requests, and who sent them."""

from __future__ import annotations

import base64
import binascii
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import BaseModel
from starlette.requests import Request

from tessera_gateway.auth import Caller, caller
from tessera_gateway.openai.documentation import schema_of
from tessera_gateway.openai.validation import from_json
from tessera_gateway.state import gateway_of

M = TypeVar("M", bound=BaseModel)
_LARGE = 100_000
"""Bytes of JSON that are read in a thread."""


class Settings(BaseModel):
    """The body of POST options; settings that it does not have are left out."""

    sd_model_checkpoint: str | None = None


async def read_body(request: Request, model: type[M]) -> M:
    """The body, which is JSON whatever its media type: front ends differ.

    Raises:
        ApiError: it is not accepted.
    """
    body = await request.body()
    if len(body) < _LARGE:
        return from_json(model, body)
    return await gateway_of(request).in_thread(partial(from_json, model, body))


def documented(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """What the OpenAPI page says of a body."""
    content = {"schema": schema_of(model), "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


async def _caller(request: Request) -> Caller:
    """The caller. A key is a bearer token, or the password (or else the user) of Basic, which is
    what front ends have fields for.
    """
    scheme, sent = get_authorization_scheme_param(request.headers.get("authorization"))
    token = _basic(sent) if scheme.lower() == "basic" else sent
    credentials = HTTPAuthorizationCredentials(scheme="Bearer", credentials=token)
    return await caller(request, credentials)


def _basic(sent: str) -> str:
    try:
        user, _, password = base64.b64decode(sent, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return ""
    return password or user


Known = Annotated[Caller, Depends(_caller)]
"""The type of a route's parameter that is the caller."""

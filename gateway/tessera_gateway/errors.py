"""Errors as OpenAI's API has them: `{"error": {"message", "type", "param", "code"}}`.

Every API of the gateway raises `ApiError` or lets the SDK's errors through; `add_handlers` makes
answers of them. Anything else becomes "internal error <id>", with the traceback in the log only.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tessera.errors import (
    Cancelled,
    InvalidInput,
    TesseraError,
    TimedOut,
    Unavailable,
    UnknownJob,
    brief,
)

log = logging.getLogger("tessera_gateway")
RETRY_S = 1
"""Retry-After of a server that is busy or restarting."""
_PARAMS = {
    "PROMPT": "prompt",
    "IMAGE": "image",
    "MASK": "mask",
    "WIDTH": "size",
    "HEIGHT": "size",
    "CONTROL_IMAGES": "tessera.controls",
}
"""Inputs of the contract that the OpenAI APIs have a field for; others are in `tessera`."""


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: a sentence for the caller.
        code: what went wrong, for programs.
        param: the field of the request.
        kind: OpenAI's `type`.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.content = {"message": message, "type": kind, "param": param, "code": code}

    def response(self, **headers: str) -> Response:
        """The answer, with further headers."""
        return JSONResponse({"error": self.content}, self.status, self.headers | headers)


def invalid(param: str, value: object, accepted: str) -> ApiError:
    """A field has a value that is not accepted."""
    message = f"{param} is {brief(value)}; accepted: {accepted}"
    return ApiError(400, message, "invalid_value", param=param)


def unfit(param: str, problem: str, accepted: str) -> ApiError:
    """A field is not accepted though its value says nothing: `mask has no alpha channel`."""
    message = f"{param} {problem}; accepted: {accepted}"
    return ApiError(400, message, "invalid_value", param=param)


def too_many(message: str, seconds: float) -> ApiError:
    """A limit of a key is reached; try again after so many seconds."""
    headers = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return ApiError(429, message, "rate_limit_exceeded", kind="rate_limit_error", headers=headers)


def of_tessera(error: TesseraError) -> ApiError:
    """What an error of the SDK is to a caller."""
    sentence = str(error)
    if isinstance(error, InvalidInput):
        param = param_of(error.field)
        if param and sentence.startswith(error.field):
            sentence = param + sentence[len(error.field) :]
        return ApiError(400, sentence, "invalid_value", param=param or None)
    if isinstance(error, UnknownJob):
        return ApiError(404, sentence, "job_not_found", param="job_id")
    if isinstance(error, Cancelled):  # OpenAI's client would draw it anew without the header
        headers = {"x-should-retry": "false"}
        return ApiError(409, sentence, "job_cancelled", headers=headers)
    if isinstance(error, Unavailable | TimedOut):
        code = "timeout" if isinstance(error, TimedOut) else "server_unavailable"
        headers = {"Retry-After": str(RETRY_S)}
        return ApiError(503, sentence, code, kind="server_error", headers=headers)
    return ApiError(500, sentence, "internal_error", kind="server_error")


def param_of(field: str) -> str:
    """The field of a request that stands for an input of the contract (`LORAS[0].weight`)."""
    name = field.partition("[")[0].partition(".")[0]
    known = _PARAMS.get(name)
    if known:
        return known + field[len(name) :].lower()
    return f"tessera.{name.lower()}{field[len(name) :]}" if name else ""


def api_error(error: Exception) -> ApiError:
    """What any exception is to a caller; one that nobody expected is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TesseraError):
        return of_tessera(error)
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, RequestValidationError):
        return _of_parameter(error)
    identity = uuid.uuid4().hex[:12]
    log.error("internal error %s", identity, exc_info=error)
    return ApiError(500, f"internal error {identity}", "internal_error", kind="server_error")


def _of_http(error: HTTPException) -> ApiError:
    codes = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
    code = codes.get(error.status_code, "invalid_request")
    return ApiError(error.status_code, str(error.detail), code, headers=error.headers)


def _of_parameter(error: RequestValidationError) -> ApiError:
    """A part of the path or the query is not accepted; bodies are read elsewhere."""
    first = error.errors()[0]
    param = str(first["loc"][-1])
    return invalid(param, first["input"], first["msg"].removeprefix("Input should be "))


def add_handlers(app: FastAPI) -> None:
    """Let an application answer with errors of this form."""

    async def answer(request: Request, error: Any) -> Response:
        return api_error(error).response()

    for kind in (ApiError, TesseraError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)

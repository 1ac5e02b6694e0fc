"""KServe v2 under `/v2`, for whoever may use the gateway.

Errors have Triton's form: `{"error": "a sentence"}`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import aiohttp
from fastapi import APIRouter
from fastapi.security import HTTPAuthorizationCredentials
from fastapi.security.utils import get_authorization_scheme_param
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tessera.errors import RESTARTING, InvalidInput, is_restarting
from tessera_gateway.auth import Caller, caller
from tessera_gateway.cancelling import cancel_job
from tessera_gateway.errors import ApiError
from tessera_gateway.kserve.about import public
from tessera_gateway.kserve.framing import ANSWERED
from tessera_gateway.kserve.limits import LIMITS, Limits, Refused
from tessera_gateway.kserve.passage import Gone, Passage
from tessera_gateway.kserve.paths import Target, find_target
from tessera_gateway.kserve.upstream import Upstream
from tessera_gateway.state import Gateway, gateway_of

DRAWING = ("generate", "edit", "templates")
"""Models whose calls count against a key's limits."""
_UNLIMITED = 2**62
_LONGEST = 2**16
"""Bytes of an error that are passed on."""
_GONE = 499
"""Status of an answer that nobody gets any more."""


class KServe:
    """The ASGI application behind `/v2`."""

    def __init__(self, upstream: Upstream | None) -> None:
        self._upstream = upstream
        # The gateway's own limit answers with plain text, so this one counts for itself.
        self._counted = RequestBodyLimitMiddleware(self._respond, max_body_size=_UNLIMITED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._counted(scope, receive, send)

    async def close(self) -> None:
        """Close the connections to Triton."""
        if self._upstream is not None:
            await self._upstream.close()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._response(request)
        await response(scope, receive, send)

    async def _response(self, request: Request) -> Response:
        try:
            target = find_target(request.method, request.scope["path"])
            if target.kind == "health":
                return await self._about(request, target)
            user = await _caller(request)
            if request.method == "GET":
                return await self._about(request, target)
            with user.turn() if target.model in DRAWING else contextlib.nullcontext():
                return await self._infer(request, target, user)
        except (Gone, ClientDisconnect):
            return Response(status_code=_GONE)
        except Refused as error:
            return _error(error.status, str(error))
        except ApiError as error:
            return _error(error.status, str(error), error.headers)
        except InvalidInput as error:
            return _error(400, str(error))

    async def _about(self, request: Request, target: Target) -> Response:
        status, content = await self._triton(request).ask(target.path)
        if status == 200:
            content = public(target.kind, content)
        return Response(content, status, media_type="application/json")

    async def _infer(self, request: Request, target: Target, user: Caller) -> Response:
        gateway = gateway_of(request)
        priority = None if user.keyring.open else user.key.priority
        passage = Passage(request, target, limits_of(gateway), priority, user.key)
        answer = await passage.answer(
            self._triton(request), lambda job: gateway.start(cancel_job(gateway, job))
        )
        headers = {name: answer.headers[name] for name in ANSWERED if name in answer.headers}
        if answer.status >= 400:
            async with answer:
                return _failed(answer.status, await answer.content.read(_LONGEST), headers)
        return StreamingResponse(_read(answer), answer.status, headers)

    def _triton(self, request: Request) -> Upstream:
        if self._upstream is None:
            self._upstream = Upstream(gateway_of(request).settings.triton_http)
        return self._upstream


def limits_of(gateway: Gateway) -> Limits:
    """Those of KServe; no body is larger than the operator allows."""
    largest = gateway.settings.max_body
    return replace(LIMITS, body=largest, json=min(LIMITS.json, largest))


async def _caller(request: Request) -> Caller:
    scheme, token = get_authorization_scheme_param(request.headers.get("authorization"))
    sent = None
    if scheme.lower() == "bearer":
        sent = HTTPAuthorizationCredentials(scheme=scheme, credentials=token)
    return await caller(request, sent)


async def _read(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.content.iter_any():
            yield piece
    finally:
        answer.close()


def _failed(status: int, body: bytes, headers: Mapping[str, str]) -> Response:
    """Triton's error; one that says that a model is being restarted as 503, whatever it was."""
    if is_restarting(body.decode(errors="replace")):
        return _error(503, RESTARTING, {"retry-after": "5"})
    kept = {name: value for name, value in headers.items() if name.lower() != "content-length"}
    return Response(body, status, kept)


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


def make_router(upstream: Upstream | None = None) -> APIRouter:
    """The routes; their connections are closed when the application ends.

    Args:
        upstream: what requests are passed on to; by default Triton's HTTP endpoint.
    """
    kserve = KServe(upstream)

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        yield
        await kserve.close()

    router = APIRouter(lifespan=lifespan)
    for path in ("/v2", "/v2/{rest:path}"):
        router.add_route(path, kserve, include_in_schema=False)  # type: ignore[arg-type]
    return router

"""Answers that come before a request's body has ended.

The limit of bodies is Starlette's, which a route may have anew (`max_body_size`). Starlette answers
in plain text, and uvicorn goes on to read a body that nobody wants: both are mended here.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tessera_gateway.errors import ApiError

TOO_LARGE = 413


def too_large() -> ApiError:
    """The error of a body that is too large."""
    return ApiError(TOO_LARGE, "the body is too large for this server", "body_too_large")


class EarlyAnswers:
    """Middleware: an answer before the end of the body closes the connection, and every 413 has the
    form of the other errors.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        whole = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        answered = False

        async def read() -> Message:
            nonlocal whole
            message = await receive()
            whole = whole or not message.get("more_body", False)
            return message

        async def write(message: Message) -> None:
            nonlocal answered
            if answered:
                return
            if message["type"] == "http.response.start" and not whole:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            if message.get("status") == TOO_LARGE and _is_plain(message):
                answered = True
                await _refusal(scope)(scope, receive, send)
                return
            await send(message)

        await self._app(scope, read, write)


def _is_plain(message: Message) -> bool:
    """Whether an answer is Starlette's own."""
    return Headers(raw=message["headers"]).get("content-type", "").startswith("text/plain")


def _refusal(scope: Scope) -> Response:
    """A 413 in the form of the API that was asked."""
    refusal = too_large()
    if scope["path"].startswith("/sdapi/"):
        return JSONResponse({"detail": str(refusal)}, TOO_LARGE, {"Connection": "close"})
    return refusal.response(Connection="close")

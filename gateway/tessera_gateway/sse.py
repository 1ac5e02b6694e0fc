"""Server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""A proxy that buffers would hold events back."""
PING_S = 15.0
"""A stream without events for so long gets a comment, so that nobody closes it."""
PING = format_sse_event(comment="ping")


def event(name: str, content: Mapping[str, Any]) -> bytes:
    """An event with JSON."""
    return format_sse_event(event=name, data_str=json.dumps(content))


class EventStream(StreamingResponse):
    """An answer of events.

    Args:
        events: what to send.
        headers: of the answer.
        work: what the events come from; cancelled when the answer ends, whatever the reason.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        headers: Mapping[str, str] | None = None,
        work: asyncio.Task[Any] | None = None,
    ) -> None:
        super().__init__(events, headers={**HEADERS, **(headers or {})})
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the caller has gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._work:
                self._work.cancel()

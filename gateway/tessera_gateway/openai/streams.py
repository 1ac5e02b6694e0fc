"""The stream of a request's events: previews while pictures are drawn, then the pictures."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tessera_client import Preview, Result
from tessera_gateway.drawing import Drawing, all_of, draw
from tessera_gateway.errors import api_error
from tessera_gateway.openai.answers import (
    file_of,
    head_of,
    partial_of,
    said_of,
    usage_of,
)
from tessera_gateway.openai.orders import Order
from tessera_gateway.pictures import base64_of
from tessera_gateway.sse import PING, PING_S, event
from tessera_gateway.state import Gateway


@dataclass
class Picks:
    """Which previews of a picture become events: the first ones behind equal shares of the steps.

    Attributes:
        count: how many at most.
        passed: how many of the shares lie behind the latest event.
    """

    count: int
    passed: int = 0

    def take(self, preview: Preview) -> bool:
        """Whether a preview becomes an event."""
        share = preview.steps / (self.count + 1)
        passed = min(self.count, math.floor(preview.step / share))
        taken = passed > self.passed
        self.passed = max(passed, self.passed)
        return taken


@dataclass(frozen=True)
class _Partial:
    """A preview that becomes an event."""

    number: int
    index: int
    preview: Preview


@dataclass(frozen=True)
class _Completed:
    """A picture that becomes an event."""

    number: int
    result: Result


_News = _Partial | _Completed | Exception | None


@dataclass
class EventSource:
    """Draws what an order asks for, and yields events as they come.

    Attributes:
        gateway: that serves the request.
        order: what was asked for.
    """

    gateway: Gateway
    order: Order
    _news: asyncio.Queue[_News] = field(default_factory=asyncio.Queue)

    async def draw(self) -> None:
        """Draw all pictures at once. The first error ends the others, and is the last event."""
        try:
            await all_of(self._draw(*each) for each in enumerate(self.order.drawings))
        except Exception as error:
            self._news.put_nowait(error)
        finally:
            self._news.put_nowait(None)

    async def events(self) -> AsyncIterator[bytes]:
        """Events, with something to keep the connection open when there are none for long."""
        while True:
            try:
                async with asyncio.timeout(PING_S):
                    news = await self._news.get()
            except TimeoutError:
                yield PING
                continue
            if news is None:
                return
            yield await self.gateway.in_thread(partial(self._event, news))

    async def _draw(self, number: int, drawing: Drawing) -> None:
        picks, index = Picks(self.order.partials), 0

        def show(preview: Preview) -> None:
            nonlocal index
            if picks.take(preview):
                self._news.put_nowait(_Partial(number, index, preview))
                index += 1

        result = await draw(self.gateway, drawing, show if picks.count else None)
        self._news.put_nowait(_Completed(number, result))

    def _event(self, news: _Partial | _Completed | Exception) -> bytes:
        if isinstance(news, Exception):
            return event("error", {"type": "error", "error": api_error(news).content})
        order = self.order
        created = int(time.time())
        if isinstance(news, _Partial):
            preview = news.preview
            head = head_of(order, (preview.width, preview.height))
            content = {
                "b64_json": partial_of(order, preview.enlarged()),
                "partial_image_index": news.index,
                "tessera": {
                    "job_id": order.drawings[news.number].job_id,
                    "image_index": news.number,
                    "step": preview.step,
                    "steps": preview.steps,
                },
            }
            return self._named("partial_image", {"created_at": created, **head, **content})
        result = news.result
        metadata = self.gateway.settings.metadata
        content = {
            "b64_json": base64_of(file_of(order, result, metadata=metadata)),
            "usage": usage_of(order, [result]),
            "tessera": {**said_of(result), "image_index": news.number},
        }
        head = head_of(order, result.image.size)
        return self._named("completed", {"created_at": created, **head, **content})

    def _named(self, name: str, content: dict[str, Any]) -> bytes:
        kind = f"{self.order.kind}.{name}"
        return event(kind, {"type": kind, **content})

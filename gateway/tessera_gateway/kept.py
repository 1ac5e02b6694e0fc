"""Pictures behind URLs, for callers that ask for a URL instead of the picture.

A URL has 256 random bits and needs no key, as OpenAI's. Pictures are kept in memory, for a while.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tessera_gateway.errors import ApiError


@dataclass(frozen=True)
class KeptPicture:
    """A picture's file, and until when it is kept."""

    data: bytes
    media_type: str
    until: float


class KeptPictures:
    """Pictures by name.

    Args:
        seconds: how long each is kept.
        budget: bytes of all together; the oldest make room.
        clock: seconds; tests have another.
    """

    def __init__(
        self, *, seconds: float, budget: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._budget = budget
        self._clock = clock
        self._pictures: dict[str, KeptPicture] = {}
        self._bytes = 0

    def put(self, data: bytes, media_type: str) -> str:
        """Keep a picture; returns its name."""
        name = secrets.token_urlsafe(32)
        self._pictures[name] = KeptPicture(data, media_type, self._clock() + self._seconds)
        self._bytes += len(data)
        self._make_room()
        return name

    def get(self, name: str) -> KeptPicture | None:
        """A picture, if it is (still) there."""
        self._make_room()
        return self._pictures.get(name)

    def _make_room(self) -> None:
        """They are in the order in which they end."""
        now = self._clock()
        for name, picture in list(self._pictures.items()):
            if picture.until > now and self._bytes <= self._budget:
                return
            del self._pictures[name]
            self._bytes -= len(picture.data)


router = APIRouter(tags=["Pictures"])


@router.get(
    "/pictures/{name}",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}, 404: {"description": "It is not there."}},
)
async def picture(request: Request, name: str) -> Response:
    """A picture that was asked for with `response_format` url."""
    found = request.app.state.gateway.kept.get(name)
    if found is None:
        raise ApiError(404, "there is no such picture, or not any more", "not_found")
    return Response(found.data, media_type=found.media_type)

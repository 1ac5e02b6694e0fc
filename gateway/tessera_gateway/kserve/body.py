"""A request's body as it comes in: exact parts of it, in pieces that are worth sending.

A client may send its body in chunks of one byte. Triton dies of 600,000 of them, so what is passed
on is collected into larger pieces.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from tessera_gateway.kserve.limits import Refused

PIECE = 2**16
"""Bytes of a piece that is passed on, unless it is the last of its part."""


class Body:
    """The bytes of a body, from its beginning to its end.

    Args:
        chunks: these bytes in whatever pieces they come.
        limit: bytes that it may have in all.
    """

    def __init__(self, chunks: AsyncIterator[bytes], limit: int) -> None:
        self._chunks = chunks
        self._limit = limit
        self._came = 0
        self._rest = bytearray()

    async def all(self) -> bytes:
        """The whole body.

        Raises:
            Refused: it is larger than the limit.
        """
        while await self._more():
            pass
        return await self.take(len(self._rest))

    async def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            Refused: the body ends before, or is larger than the limit.
        """
        while len(self._rest) < count:
            if not await self._more():
                raise Refused(400, f"the body ends {count - len(self._rest)} bytes too early")
        taken = bytes(self._rest[:count])
        del self._rest[:count]
        return taken

    async def pieces(self, count: int) -> AsyncIterator[bytes]:
        """The next `count` bytes, in pieces.

        Raises:
            Refused: see `take`.
        """
        while count:
            piece = await self.take(min(count, max(PIECE, len(self._rest))))
            count -= len(piece)
            yield piece

    async def end(self) -> None:
        """Nothing more comes.

        Raises:
            Refused: something does.
        """
        if self._rest or await self._more():
            raise Refused(400, "the body has more bytes than its tensors; accepted: none behind")

    async def _more(self) -> bool:
        """Whether anything came."""
        chunk = b""
        while not chunk:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                return False
        self._came += len(chunk)
        if self._came > self._limit:
            raise Refused(413, f"the body has more than {self._limit} bytes")
        self._rest += chunk
        return True

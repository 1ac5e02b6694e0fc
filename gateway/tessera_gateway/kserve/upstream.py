"""The connection to Triton's HTTP port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import aiohttp

from tessera_gateway.kserve.limits import Refused

_CONNECTS_WITHIN_S = 5.0
_READ_AHEAD = 2**18
_HEADERS = {"accept-encoding": "identity", "user-agent": "tessera-gateway"}
"""By itself, aiohttp would ask for gzip, which costs Triton more than the bytes that it saves."""


class Upstream:
    """Triton's HTTP endpoint. It is opened by its first use, inside the running loop.

    Args:
        url: `http://host:port`.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self,
        method: str,
        path: str,
        body: AsyncIterator[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """Triton's answer, its body still to be read; close it in the end.

        Raises:
            Refused: there is no connection, or it ended (503).
        """
        try:
            return await self._open().request(
                method, self._url + path, data=body, headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise Refused(503, "the server cannot be reached, or ended the connection") from None

    async def ask(self, path: str) -> tuple[int, bytes]:
        """Status and body of an answer to GET.

        Raises:
            Refused: see `send`.
        """
        async with await self.send("GET", path) as answer:
            try:
                return answer.status, await answer.read()
            except (aiohttp.ClientError, OSError):
                raise Refused(503, "the server ended the connection") from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECTS_WITHIN_S),
                headers=_HEADERS,
                auto_decompress=False,
                read_bufsize=_READ_AHEAD,
            )
        return self._session

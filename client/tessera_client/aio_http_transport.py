"""Named arrays over HTTP for asyncio, by aiohttp."""

from __future__ import annotations

import aiohttp

from tessera.types import Array
from tessera_client import http_body
from tessera_client.address import Address
from tessera_client.wire import Call, ErrorAnswer, received


class AsyncHttpTransport:
    """HTTP for asyncio: as many connections as there are calls at a time, kept for later ones."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._opened: aiohttp.ClientSession | None = None

    async def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        """See `Transport.infer`."""
        try:
            body, headers = http_body.written(call, timeout)
            path = f"/v2/models/{call.model}/infer"
            status, content, length = await self._ask("POST", path, timeout, body, headers)
            if status != 200:
                raise ErrorAnswer(http_body.sentence_of(content), str(status))
            return http_body.read(content, length, call.outputs)
        except Exception as error:
            raise received(error, self._address.netloc, timeout) from None

    async def ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """See `Transport.ready`."""
        path = f"/v2/models/{model}/ready" if model else "/v2/health/ready"
        try:
            return (await self._ask("GET", path, timeout))[0] == 200
        except Exception:
            return False

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def _ask(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes, str | None]:
        """Status, body and the header that says how long its JSON is."""
        async with self._session().request(
            method,
            self._url(path),
            data=body,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=timeout),
            allow_redirects=False,
        ) as response:
            content = await response.read()
            return response.status, content, response.headers.get(http_body.LENGTH)

    def _url(self, path: str) -> str:
        return f"{self._address.scheme}://{self._address.netloc}{self._address.prefix}{path}"

    def _session(self) -> aiohttp.ClientSession:
        """Made at first use: it must be inside the running loop."""
        if self._opened is None:
            connector = aiohttp.TCPConnector(limit=0, ssl=self._address.tls or True)
            self._opened = aiohttp.ClientSession(
                connector=connector, headers=dict(self._address.headers)
            )
        return self._opened

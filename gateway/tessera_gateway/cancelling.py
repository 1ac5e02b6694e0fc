"""The end of a job that nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import time

from tessera.errors import TesseraError, UnknownJob
from tessera_gateway.state import Gateway

_COMES_WITHIN_S, _AGAIN_S = 2.0, 0.1


async def cancel_job(gateway: Gateway, job: str) -> None:
    """Cancel a job; one that the server does not know yet may be on its way to it."""
    until = time.monotonic() + _COMES_WITHIN_S
    with contextlib.suppress(TesseraError):
        while True:
            try:
                await gateway.client.cancel(job)
                return
            except UnknownJob:
                if time.monotonic() >= until:
                    return
            await asyncio.sleep(_AGAIN_S)

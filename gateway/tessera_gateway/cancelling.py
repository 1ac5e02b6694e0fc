"""The end of a job that nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import time

from tessera.errors import TesseraError, UnknownJob
from tessera_gateway.state import Gateway

COMES_WITHIN_S = 2.0
"""A job is on its way to the server for less than that, unless it waits in a queue of Triton's."""

_AGAIN_S, _LATER_S = 0.1, 0.5


async def cancel_job(gateway: Gateway, job: str) -> None:
    """Cancel a job. The server may not know it yet: an edit may wait in Triton's queue, which
    cannot be told. So this goes on for as long as a picture may take, or the gateway runs.
    """
    began = time.monotonic()
    with contextlib.suppress(TesseraError):
        while True:
            try:
                await gateway.client.cancel(job)
                return
            except UnknownJob:
                waited = time.monotonic() - began
            if waited > gateway.settings.timeout or (waited > COMES_WITHIN_S and gateway.closing):
                return
            await asyncio.sleep(_AGAIN_S if waited < COMES_WITHIN_S else _LATER_S)

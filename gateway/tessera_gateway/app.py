"""The application: `create_app`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from tessera_client import AsyncClient
from tessera_client.aio_transport import AsyncTransport
from tessera_gateway import capabilities, jobs, kept
from tessera_gateway.errors import add_handlers
from tessera_gateway.kept import KeptPictures
from tessera_gateway.keys import Keyring, KeysError
from tessera_gateway.kserve import router as kserve
from tessera_gateway.kserve.framing import HEAD_LENGTH
from tessera_gateway.kserve.upstream import Upstream
from tessera_gateway.limits import EarlyAnswers
from tessera_gateway.openai import routes as openai
from tessera_gateway.page import routes as page
from tessera_gateway.sdapi import routes as sdapi
from tessera_gateway.settings import GatewaySettings
from tessera_gateway.state import Gateway

log = logging.getLogger("tessera_gateway")
EXPOSED = (openai.JOBS, HEAD_LENGTH, "retry-after", "x-should-retry")
"""Headers of answers that pages of `--cors` may read, beside those that browsers show anyway."""


def create_app(
    settings: GatewaySettings,
    *,
    transport: AsyncTransport | None = None,
    upstream: Upstream | None = None,
    keyring: Keyring | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        settings: the operator's.
        transport: what the SDK uses instead of a connection to `settings.triton`, in tests.
        upstream: what KServe's bytes are passed on to instead of `settings.triton_http`.
        keyring: the keys instead of those of `settings.keys`: a fleet has the same ones over gRPC.

    Raises:
        KeysError: the file of keys cannot be used.
        InvalidInput: `settings.triton` is no address.
    """

    def new_client() -> AsyncClient:
        """Without a token: a user's own is not for the server behind."""
        return AsyncClient(settings.triton, token="", timeout=settings.timeout, transport=transport)

    pictures = KeptPictures(seconds=settings.url_seconds, budget=settings.url_bytes)
    keyring = keyring or Keyring(settings.keys)
    gateway = Gateway(settings, new_client(), keyring, pictures)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway.client = new_client()  # the one before is closed if the application ran already
        gateway.closing = False
        _reload_at_hangup(keyring)
        yield
        await gateway.close()

    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        title="Tessera gateway",
        version=version("tessera"),
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    add_handlers(app)
    for router in (openai.router, jobs.router, capabilities.router, kept.router, sdapi.router):
        app.include_router(router)
    for router in (kserve.make_router(upstream), page.router):
        app.include_router(router)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body)
    app.add_middleware(EarlyAnswers)  # around the one before
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    return app


def _reload_at_hangup(keyring: Keyring) -> None:
    """Read the file of keys again at SIGHUP; a thread that is not the main one gets no signals."""
    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_keys, keyring)


def reload_keys(keyring: Keyring) -> None:
    """Read the file of keys again; the log says how many there are, or why they stay."""
    try:
        log.info("%d keys", keyring.reload())
    except KeysError as error:
        log.error("the keys stay as they were: %s", error)

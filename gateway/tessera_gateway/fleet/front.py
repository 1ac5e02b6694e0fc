"""The address of a fleet: every API of the gateway over HTTP, and KServe over gRPC."""

from __future__ import annotations

import contextlib
import hashlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from tessera_gateway.app import create_app
from tessera_gateway.auth import Authenticated
from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.copies import Copies
from tessera_gateway.fleet.grpc_front import GrpcFront
from tessera_gateway.fleet.learning import PATHS
from tessera_gateway.fleet.pool import Pool
from tessera_gateway.fleet.scaling import Hold
from tessera_gateway.fleet.settings import FleetSettings
from tessera_gateway.fleet.upstream import FleetUpstream
from tessera_gateway.keys import Keyring
from tessera_gateway.settings import GatewaySettings


class _Http(uvicorn.Server):
    """Leaves signals to others: uvicorn would raise them again, and end what has to be closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class Front:
    """The servers of a fleet's address.

    Args:
        settings: the operator's.

    Attributes:
        pool: the workers; at first, there is none.
        keyring: the keys, whose limits count HTTP and gRPC together.

    Raises:
        KeysError: the file of keys cannot be used.
    """

    def __init__(self, settings: FleetSettings) -> None:
        self.pool = Pool(Book(settings.weights), _hold(settings))
        self._copies = Copies(self.pool)
        self._settings = settings
        self.keyring = Keyring(Path(settings.keys) if settings.keys else None)
        limit = GatewaySettings.max_body
        self._grpc = GrpcFront(self.pool, self.keyring, max_body=limit)
        self._inner = GrpcFront(self.pool, None, max_body=-1)
        """What the gateway's own requests come by: their callers have been let in already, and a
        picture has more bytes here than its file, whose size was checked.
        """
        self._http: uvicorn.Server | None = None
        self._stopped = False

    async def serve(self) -> None:
        """Listen until `stop` is called.

        Raises:
            RuntimeError: a port is taken.
        """
        settings = self._settings
        inner = await self._inner.start("127.0.0.1", 0)
        await self._grpc.start(settings.host, settings.grpc_port)
        # Uvicorn's own logging would close all handlers. Ray Serve needs its own when its
        # controller comes back: a replica without it is stopped, which would be this front.
        log: dict[str, Any] = {"log_config": None, "log_level": "warning"}
        config = uvicorn.Config(
            self._app(inner), host=settings.host, port=settings.http_port, **log
        )
        self._http = _Http(config)
        self._http.should_exit = self._stopped
        try:
            await self._http.serve()
        finally:
            await self._grpc.close()
            await self._inner.close()
            await self.pool.close()

    def stop(self) -> None:
        """Let `serve` end, after the requests under way."""
        self._stopped = True
        if self._http is not None:
            self._http.should_exit = True

    def _app(self, inner: int) -> FastAPI:
        gateway = GatewaySettings(
            triton=f"grpc://127.0.0.1:{inner}",
            host=self._settings.host,
            port=self._settings.http_port,
        )
        app = create_app(gateway, upstream=FleetUpstream(self.pool), keyring=self.keyring)

        @app.get("/v1/fleet", tags=["Fleet"])
        async def fleet(caller: Authenticated) -> dict[str, Any]:
            """The workers, and how good the predictions of the latest pictures were."""
            return about(self.pool)

        @app.get("/v1/fleet/choices", tags=["Fleet"])
        async def choices(caller: Authenticated) -> list[dict[str, Any]]:
            """Where the latest requests for pictures were sent, and the score of each worker."""
            return chosen(self.pool)

        @app.get("/metrics", tags=["Fleet"], response_class=Response)
        async def metrics(caller: Authenticated) -> Response:
            """Prometheus's text format."""
            return Response(self.pool.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

        return app


def _hold(settings: FleetSettings) -> Hold | None:
    scaling = settings.autoscaling
    return Hold(scaling.hold_seconds, scaling.hold_requests) if scaling else None


def about(pool: Pool) -> dict[str, Any]:
    """What a router knows of its workers."""
    now = time.monotonic()
    live = set(pool.book.live(now))
    seconds = pool.book.seconds(now)
    errors = sorted(pool.errors)
    return {
        "workers": [
            {
                "address": name,
                "worker": entry.load.worker,
                "live": name in live,
                "draining": name in pool.book.draining,
                "work_s": round(seconds.get(name, 0.0), 3),
                "told_s_ago": round(now - entry.told, 3) if entry.told else None,
                "in_flight": len(entry.sent),
                "running": len(entry.load.running),
                "waiting": len(entry.load.waiting),
                "templates": len(entry.load.templates),
                "controls": list(entry.load.controls),
                "scales": {path: round(pool.book.scales.of(name, path), 3) for path in PATHS},
            }
            for name, entry in pool.book.workers.items()
        ],
        "weights": msgspec.to_builtins(pool.book.weights),
        "held": pool.held,
        "sent_again": pool.tried,
        "took_of_predicted": {
            "pictures": len(errors),
            "median": round(statistics.median(errors), 3) if errors else None,
            "p95": round(errors[int(0.95 * (len(errors) - 1))], 3) if errors else None,
        },
    }


def chosen(pool: Pool) -> list[dict[str, Any]]:
    """Its latest choices, in order. Who knows a job's id can cancel it, and who knows a template's
    can see it, so digests are told.
    """
    return [
        {
            "job": digest_of(peek.job),
            "model": peek.model,
            "steps": peek.steps,
            "mask": peek.mask,
            "template": digest_of(peek.template) if peek.template else None,
            "loras": list(peek.loras),
            "controls": list(peek.controls),
            "worker": choice.worker,
            "scores": choice.scores,
            "missing": choice.missing,
        }
        for peek, choice in pool.book.choices
    ]


def digest_of(identity: str) -> str:
    """By which a caller finds its own job or template among the choices."""
    return hashlib.sha256(identity.encode()).hexdigest()[:16]

"""`tessera-fleet`."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from pathlib import Path
from typing import Annotated

import typer

from tessera.terminal.console import Console
from tessera_gateway.fleet.front import Front
from tessera_gateway.fleet.settings import FleetError, FleetSettings, read_settings

console = Console(stderr=True)
app = typer.Typer(add_completion=False)

File = Annotated[Path, typer.Argument(metavar="fleet.yaml", help="File that describes the fleet.")]


@app.command()
def fleet(file: File) -> None:
    """Serve a bundle by several workers behind one address."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        settings = read_settings(file)
        if settings.servers:
            asyncio.run(_in_front(settings))
        else:
            _by_ray(settings)
    except (FleetError, RuntimeError) as error:
        console.print(f"error: {error}")
        raise typer.Exit(1) from None


def main() -> None:
    """The console script."""
    app()


async def _in_front(settings: FleetSettings) -> None:
    """In front of servers that run already."""
    front = Front(settings)
    front.pool.have(settings.servers)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, front.stop)
    await front.serve()


def _by_ray(settings: FleetSettings) -> None:
    # Ray's processes listen on ports. They ask for a token if these are set when Ray is imported.
    if not settings.ray:  # that of one that runs already is the operator's
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from tessera_gateway.fleet import ray_serve
    except ModuleNotFoundError as error:
        raise FleetError(
            f"a fleet with a bundle needs Ray ({error.name} is not installed): "
            'pip install ".[ray,serve]" in a checkout of Tessera'
        ) from None
    ray_serve.run(settings)

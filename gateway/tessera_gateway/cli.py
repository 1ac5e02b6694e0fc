"""`tessera-gateway`."""

from __future__ import annotations

import logging
import socket

import typer

from tessera.errors import TesseraError
from tessera.terminal.console import Console
from tessera_gateway import options as o
from tessera_gateway.settings import GatewaySettings

MEGA = 1e6
KEEP_ALIVE_S = 75
"""How long an idle connection stays open, in seconds: longer than proxies keep theirs (60), so that
they do not send into one that is being closed.
"""
STOP_S = 5
"""How long requests may take to end when the gateway is stopped."""
console = Console(stderr=True)
output = Console()
app = typer.Typer(add_completion=False, context_settings={"auto_envvar_prefix": "TESSERA_GATEWAY"})


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    triton: o.Triton = GatewaySettings.triton,
    kserve: o.Kserve = GatewaySettings.kserve,
    host: o.Host = GatewaySettings.host,
    port: o.Port = GatewaySettings.port,
    keys: o.Keys = None,
    cors: o.Cors = None,
    timeout: o.Timeout = GatewaySettings.timeout,
    max_body: o.MaxBody = GatewaySettings.max_body / MEGA,
    max_pixels: o.MaxPixels = GatewaySettings.max_pixels / MEGA,
    metadata: o.Metadata = GatewaySettings.metadata,
    log_prompts: o.LogPrompts = GatewaySettings.log_prompts,
) -> None:
    """Serve image APIs over HTTP, in front of a Tessera server, until a signal ends it."""
    if context.invoked_subcommand:
        return
    settings = GatewaySettings(
        triton=triton,
        kserve=kserve,
        host=host,
        port=port,
        keys=keys,
        cors=tuple(cors or ()),
        timeout=timeout,
        max_body=int(MEGA * max_body),
        max_pixels=int(MEGA * max_pixels),
        metadata=metadata,
        log_prompts=log_prompts,
    )
    logging.basicConfig(format="%(levelname)s: %(name)s: %(message)s", level=logging.INFO)
    try:
        import uvicorn

        from tessera_gateway.app import create_app

        application = create_app(settings)
    except ImportError as error:
        needs = f'{error.name} is not installed; pip install ".[gateway]" in a checkout of Tessera'
        console.say(f"tessera-gateway: {needs}", style="red")
        raise typer.Exit(1) from None
    except TesseraError as error:
        console.say(f"tessera-gateway: {error}", style="red")
        raise typer.Exit(1) from None
    _check_port(host, port)
    uvicorn.run(
        application,
        host=host,
        port=port,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )


def _check_port(host: str, port: int) -> None:
    """Say that a port is taken, in one line."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"tessera-gateway: --port {port} cannot be used: {error.strerror}"
            console.say(message, style="red")
            raise typer.Exit(1) from None


@app.command("make-key")
def make(name: str = typer.Argument(help="Whose key it is.")) -> None:
    """Make a key: its token goes to the user, the lines into the file of keys."""
    from tessera_gateway.keys import make_key

    token, lines = make_key(name)
    console.say(f"token (shown only now): {token}")
    output.say(lines)


def main() -> None:
    """Entry point of the console script."""
    app()

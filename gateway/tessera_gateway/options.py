"""The options of `tessera-gateway`, as typer shows them. Their defaults are those of
`GatewaySettings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(panel: str, *names: str, **details: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **details)


_LISTEN = "Addresses"
_WHO = "Who may use it"
_LIMITS = "Limits"
_PICTURES = "Pictures and log"

Triton = Annotated[
    str,
    _option(
        _LISTEN, metavar="URL", help="Address of Triton: grpc://host[:port] or http://host[:port]."
    ),
]
Kserve = Annotated[
    str,
    _option(
        _LISTEN,
        metavar="URL",
        help="Triton's HTTP endpoint, for KServe; if left out, port 8000 of Triton's host.",
    ),
]
Host = Annotated[str, _option(_LISTEN, help="Address to listen on.")]
Port = Annotated[int, _option(_LISTEN, min=0, max=65535, help="Port to listen on; 0 is any.")]
Keys = Annotated[
    Path | None,
    _option(_WHO, metavar="FILE", help="Let in only those with a key of this file."),
]
Cors = Annotated[
    list[str] | None,
    _option(_WHO, metavar="ORIGIN", help="Let pages of this origin use the APIs (repeatable)."),
]
Timeout = Annotated[
    float, _option(_LIMITS, min=1, metavar="SECONDS", help="Longest wait for a picture.")
]
MaxBody = Annotated[
    float, _option(_LIMITS, min=0.001, metavar="MB", help="Largest body of a request.")
]
MaxPixels = Annotated[
    float, _option(_LIMITS, min=0.001, metavar="MILLIONS", help="Most pixels of an image.")
]
Metadata = Annotated[
    bool,
    _option(_PICTURES, "--metadata/--no-metadata", help="Write into a PNG how it was made."),
]
LogPrompts = Annotated[bool, _option(_PICTURES, "--log-prompts", help="Log prompts, too.")]

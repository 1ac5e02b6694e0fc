"""What an operator chooses for one gateway. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class GatewaySettings:
    """Options of `tessera-gateway`, whose defaults these are.

    Attributes:
        triton: the server's address, `grpc://host:port` or `http://host:port`.
        kserve: Triton's HTTP endpoint, which KServe's bytes are passed on to; if empty, that of
            `triton`, at port 8000 if that is gRPC's.
        host, port: where the gateway listens.
        keys: file of keys; without one, everybody may use every API.
        cors: origins whose pages may use the APIs.
        timeout: seconds that a picture may take.
        max_body: bytes in a request's body.
        max_pixels: pixels in an image of a request.
        url_seconds: how long a picture's URL works.
        url_bytes: of all pictures behind URLs; the oldest go first.
        metadata: whether a picture's file says how it was made.
        log_prompts: whether the log has prompts.
    """

    triton: str = "grpc://localhost:8001"
    kserve: str = ""
    host: str = "127.0.0.1"
    port: int = 8080
    keys: Path | None = None
    cors: tuple[str, ...] = ()
    timeout: float = 300.0
    max_body: int = 32_000_000
    max_pixels: int = 16_000_000
    url_seconds: float = 3600.0
    url_bytes: int = 256_000_000
    metadata: bool = True
    log_prompts: bool = False

    @property
    def triton_http(self) -> str:
        """Triton's HTTP endpoint, `http://host:port`."""
        if self.kserve or self.triton.startswith("http://"):
            return self.kserve or self.triton
        host = urlsplit(self.triton).hostname or "localhost"
        return f"http://[{host}]:8000" if ":" in host else f"http://{host}:8000"

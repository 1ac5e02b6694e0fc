"""The repository API of a tritonserver: which models are loaded, and to change that.

Standard library only.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.serve.tritonserver import DIRECT

LOAD_S = 600.0
"""A large model may take that long."""
_ANSWER_S = 5.0

READY, LOADING = "READY", "LOADING"

FAILURES = (OSError, http.client.HTTPException, ValueError)
"""What asking a server may raise that ends meanwhile, or answers what is no HTTP or no JSON."""


@dataclass(frozen=True)
class Repository:
    """That of one server.

    Attributes:
        url: of its HTTP endpoint.
        headers: that it wants.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def is_up(self) -> bool:
        """Whether the server has loaded what it was started with."""
        return self._ask("/v2/health/ready", None) is not None

    def state(self, model: str) -> str | None:
        """What the server says of a model: READY, LOADING, UNLOADING, UNAVAILABLE or, if it does
        not know it, nothing; `None` if it does not answer.
        """
        body = self._ask("/v2/repository/index", b"{}")
        try:
            entries: list[dict[str, str]] = json.loads(body or b"")
            return next((e.get("state", "") for e in entries if e["name"] == model), "")
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def answers(self, timeout: float) -> bool:
        """Whether the server answers within `timeout` seconds, be it with an error."""
        try:
            DIRECT.open(f"{self.url}/v2/health/live", timeout=timeout).close()
        except urllib.error.HTTPError as error:
            error.close()
        except FAILURES:
            return False
        return True

    def load(self, model: str) -> bool:
        """Load a model; whether that was possible."""
        return self._ask(f"/v2/repository/models/{model}/load", b"{}", LOAD_S) is not None

    def unload(self, model: str, timeout: float = _ANSWER_S) -> None:
        """Unload a model; does not wait longer than `timeout` for that."""
        self._ask(f"/v2/repository/models/{model}/unload", b"{}", timeout)

    def _ask(self, path: str, body: bytes | None, timeout: float = _ANSWER_S) -> bytes | None:
        """Body of a successful answer, `None` for anything else."""
        request = urllib.request.Request(self.url + path, body, dict(self.headers))
        try:
            with DIRECT.open(request, timeout=timeout) as answer:
                content: bytes = answer.read()
                return content
        except FAILURES:
            return None
